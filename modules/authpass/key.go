package authpass

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	"github.com/golang-jwt/jwt/v5"
)

// Algorithms are the values of TokenConfig.Algorithm (RFC 7518, section 3.1, and
// RFC 8037, section 3.1).
var Algorithms = []string{
	"HS256", "HS384", "HS512",
	"RS256", "RS384", "RS512",
	"PS256", "PS384", "PS512",
	"ES256", "ES384", "ES512",
	"EdDSA",
}

// TokenConfig says how tokens are signed.
type TokenConfig struct {
	// Algorithm is one of Algorithms; tokens signed in any other way are refused.
	Algorithm string
	// Key is the shared secret for HS256, HS384 and HS512, else the text of a PEM
	// public key (PKIX, PKCS #1, or a certificate).
	Key string
}

// minRSABits is what RFC 7518, sections 3.3 and 3.5, demand of an RSA key.
const minRSABits = 2048

// pemMark begins every PEM block (RFC 7468, section 2).
const pemMark = "-----BEGIN "

// verificationKey returns the signing method and the key that it verifies with. Its
// errors hold nothing of the key.
func (c TokenConfig) verificationKey() (jwt.SigningMethod, crypto.PublicKey, error) {
	switch method := signingMethod(c.Algorithm).(type) {
	case *jwt.SigningMethodHMAC:
		secret, err := c.secret()
		return method, secret, err
	case *jwt.SigningMethodRSA, *jwt.SigningMethodRSAPSS:
		key, err := publicKey[*rsa.PublicKey](c, "an RSA")
		if err != nil {
			return nil, nil, err
		}
		if key.N.BitLen() < minRSABits {
			return nil, nil, fmt.Errorf("%s needs an RSA key of %d bits or more (RFC 7518, section 3.3), not %d", c.Algorithm, minRSABits, key.N.BitLen())
		}
		return method, key, nil
	case *jwt.SigningMethodECDSA:
		key, err := publicKey[*ecdsa.PublicKey](c, "an elliptic curve")
		if err != nil {
			return nil, nil, err
		}
		// Each of the algorithms is bound to one curve (RFC 7518, section 3.4); the
		// library looks at the length of the signature only.
		if want := curveOf(method); key.Curve != want {
			return nil, nil, fmt.Errorf("%s needs a key on the curve %s, not %s", c.Algorithm, want.Params().Name, key.Curve.Params().Name)
		}
		return method, key, nil
	case *jwt.SigningMethodEd25519:
		key, err := publicKey[ed25519.PublicKey](c, "an Ed25519")
		return method, key, err
	}
	return nil, nil, fmt.Errorf("the algorithm must be one of %s", strings.Join(Algorithms, ", "))
}

// signingMethod returns nil for what is not in Algorithms, such as "none".
func signingMethod(algorithm string) jwt.SigningMethod {
	for _, known := range Algorithms {
		if algorithm == known {
			return jwt.GetSigningMethod(algorithm)
		}
	}
	return nil
}

func (c TokenConfig) secret() ([]byte, error) {
	switch {
	case c.Key == "":
		return nil, fmt.Errorf("%s needs a secret, and it is empty", c.Algorithm)
	case strings.HasPrefix(strings.TrimSpace(c.Key), pemMark):
		// Whoever knows a public key could sign tokens if it were taken for a secret.
		return nil, fmt.Errorf("%s needs a secret, not a PEM block: a public key goes with RS256, PS256, ES256 or EdDSA", c.Algorithm)
	}
	return []byte(c.Key), nil
}

func curveOf(method *jwt.SigningMethodECDSA) elliptic.Curve {
	switch method.CurveBits {
	case 256:
		return elliptic.P256()
	case 384:
		return elliptic.P384()
	}
	return elliptic.P521()
}

// publicKey reads the key of type K; kind names it for people, with its article.
func publicKey[K crypto.PublicKey](c TokenConfig, kind string) (K, error) {
	var none K
	key, err := parsePublicKey(c.Key)
	if err != nil {
		return none, fmt.Errorf("%s needs %s public key: %w", c.Algorithm, kind, err)
	}
	wanted, ok := key.(K)
	if !ok {
		return none, fmt.Errorf("%s needs %s public key, not %s", c.Algorithm, kind, keyKind(key))
	}
	return wanted, nil
}

func keyKind(key crypto.PublicKey) string {
	switch key.(type) {
	case *rsa.PublicKey:
		return "an RSA key"
	case *ecdsa.PublicKey:
		return "an elliptic curve key"
	case ed25519.PublicKey:
		return "an Ed25519 key"
	}
	return "a key of another kind"
}

// parsePublicKey reads the first public key or certificate of a PEM text. A private
// key anywhere in the text is an error: this service has no use for one, and a secret
// should not lie where it is not needed.
func parsePublicKey(text string) (crypto.PublicKey, error) {
	if strings.HasPrefix(text, pemMark) {
		// Files of variables (docker's --env-file, say) can't hold line ends.
		text = strings.ReplaceAll(text, `\n`, "\n")
	}
	var first *pem.Block
	for rest := []byte(text); ; {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, errors.New("the PEM text holds a private key; give the public key only")
		}
		switch block.Type {
		case "PUBLIC KEY", "RSA PUBLIC KEY", "CERTIFICATE":
			if first == nil {
				first = block
			}
		}
	}
	if first == nil {
		return nil, errors.New("no PEM block with a public key or a certificate was found")
	}
	// The errors of x509 may quote what they read, so they are not passed on.
	switch first.Type {
	case "CERTIFICATE":
		certificate, err := x509.ParseCertificate(first.Bytes)
		if err != nil {
			return nil, errors.New("the certificate can't be read")
		}
		return certificate.PublicKey, nil
	case "RSA PUBLIC KEY":
		key, err := x509.ParsePKCS1PublicKey(first.Bytes)
		if err != nil {
			return nil, errors.New("the PKCS #1 public key can't be read")
		}
		return key, nil
	}
	key, err := x509.ParsePKIXPublicKey(first.Bytes)
	if err != nil {
		return nil, errors.New("the public key can't be read")
	}
	return key, nil
}
