package authpass

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/aleksandrshaulskyi/chat-transportation/app"
	"github.com/aleksandrshaulskyi/chat-transportation/domain"
)

const testSecret = "a secret that only the authentication service knows"

// Keys are made once: RSA takes its time under the race detector.
var (
	rsaKey   = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 2048)) })
	smallKey = sync.OnceValue(func() *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, 1024)) })
	p256Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)) })
	p384Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)) })
	p521Key  = sync.OnceValue(func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)) })
	edKey    = sync.OnceValue(func() ed25519.PrivateKey {
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return must(key, err)
	})
)

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func publicPEM(key crypto.Signer) string {
	return pemText("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key.Public())))
}

func privatePEM(key crypto.Signer) string {
	return pemText("PRIVATE KEY", must(x509.MarshalPKCS8PrivateKey(key)))
}

func certificatePEM(key crypto.Signer) string {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "issuer"}, NotAfter: time.Now().Add(time.Hour)}
	return pemText("CERTIFICATE", must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)))
}

// sign makes a token of raw texts, as an issuer that is out of its mind would.
func sign(t testing.TB, algorithm, header, claims string, key any) string {
	t.Helper()
	text := base64.RawURLEncoding.EncodeToString([]byte(header)) + "." + base64.RawURLEncoding.EncodeToString([]byte(claims))
	signature, err := jwt.GetSigningMethod(algorithm).Sign(text, key)
	if err != nil {
		t.Fatalf("sign with %s: %v", algorithm, err)
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(signature)
}

func signHS256(t testing.TB, claims string) string {
	t.Helper()
	return sign(t, "HS256", `{"alg":"HS256","typ":"JWT"}`, claims, []byte(testSecret))
}

func newVerifier(t testing.TB, algorithm, key string) *Verifier {
	t.Helper()
	v, err := NewVerifier(TokenConfig{Algorithm: algorithm, Key: key})
	if err != nil {
		t.Fatalf("NewVerifier for %s: %v", algorithm, err)
	}
	return v
}

// mustRefuse demands ErrUnauthenticated, and that the error says nothing of the token.
func mustRefuse(t *testing.T, v *Verifier, token string) {
	t.Helper()
	grant, err := v.Verify(token)
	if !errors.Is(err, app.ErrUnauthenticated) {
		t.Fatalf("Verify returned %+v and %v, want ErrUnauthenticated", grant, err)
	}
	for part := range strings.SplitSeq(token, ".") {
		if len(part) > 8 && strings.Contains(err.Error(), part) {
			t.Errorf("the error quotes the token: %v", err)
		}
	}
}

func TestVerifyClaims(t *testing.T) {
	future := time.Now().Add(time.Hour).Unix()
	exp := fmt.Sprintf(`"exp":%d`, future)
	for _, test := range []struct {
		name, claims string
		user         int64 // 0: refused
	}{
		{"plain", `{"user_id":1,` + exp + `}`, 1},
		{"others are ignored", `{"iat":99999999999,"aud":["x"],"iss":7,"sub":{},"jti":null,"user_id":5,` + exp + `}`, 5},
		{"beyond float64", `{"user_id":9007199254740993,` + exp + `}`, 1<<53 + 1},
		{"greatest", `{"user_id":9223372036854775807,` + exp + `}`, 1<<63 - 1},
		{"lone surrogate elsewhere", `{"name":"\ud83d","user_id":1,` + exp + `}`, 1},
		{"white space", " {\n\t\"user_id\" : 1 , " + exp + "\r\n}", 1},
		{"escaped name", `{"\u0075ser_id":3,` + exp + `}`, 3},

		{"missing", `{` + exp + `}`, 0},
		{"null", `{"user_id":null,` + exp + `}`, 0},
		{"string", `{"user_id":"1",` + exp + `}`, 0},
		{"fraction", `{"user_id":1.0,` + exp + `}`, 0},
		{"exponent", `{"user_id":1e0,` + exp + `}`, 0},
		{"zero", `{"user_id":0,` + exp + `}`, 0},
		{"negative zero", `{"user_id":-0,` + exp + `}`, 0},
		{"negative", `{"user_id":-1,` + exp + `}`, 0},
		{"too great", `{"user_id":9223372036854775808,` + exp + `}`, 0},
		{"far too great", `{"user_id":18446744073709551617,` + exp + `}`, 0},
		{"leading zero", `{"user_id":01,` + exp + `}`, 0},
		{"true", `{"user_id":true,` + exp + `}`, 0},
		{"array", `{"user_id":[1],` + exp + `}`, 0},
		{"object", `{"user_id":{"user_id":1},` + exp + `}`, 0},
		{"upper case", `{"USER_ID":1,` + exp + `}`, 0},
		{"other case counts for nothing", `{"user_id":1,"User_Id":2,` + exp + `}`, 1},
		{"nested", `{"claims":{"user_id":1},` + exp + `}`, 0},

		{"the last of duplicates counts", `{"user_id":1,"user_id":2,` + exp + `}`, 2},
		{"the last of duplicates is bad", `{"user_id":1,"user_id":"2",` + exp + `}`, 0},
		{"the last exp counts", `{"user_id":1,` + exp + `,"exp":1}`, 0},

		{"no exp", `{"user_id":1}`, 0},
		{"exp null", `{"user_id":1,"exp":null}`, 0},
		{"exp string", fmt.Sprintf(`{"user_id":1,"exp":"%d"}`, future), 0},
		{"exp true", `{"user_id":1,"exp":true}`, 0},
		{"exp array", `{"user_id":1,"exp":[` + fmt.Sprint(future) + `]}`, 0},
		{"exp in upper case", fmt.Sprintf(`{"user_id":1,"EXP":%d}`, future), 0},
		{"expired", `{"user_id":1,"exp":1600000000}`, 0},
		{"exp zero", `{"user_id":1,"exp":0}`, 0},
		{"exp negative", `{"user_id":1,"exp":-1}`, 0},
		{"exp far in the past", `{"user_id":1,"exp":-1e300}`, 0},
		{"exp before all numbers", `{"user_id":1,"exp":-1e999}`, 0},
		{"exp tiny", `{"user_id":1,"exp":1e-999}`, 0},
		{"exp with a fraction", fmt.Sprintf(`{"user_id":1,"exp":%d.25}`, future), 1},
		{"exp with an exponent", `{"user_id":1,"exp":9.9e10}`, 1},
		{"exp in milliseconds", fmt.Sprintf(`{"user_id":1,"exp":%d}`, future*1000), 1},
		{"exp beyond int64", `{"user_id":1,"exp":1e300}`, 1},
		{"exp beyond float64", `{"user_id":1,"exp":1e999}`, 1},

		{"nbf past", `{"user_id":1,"nbf":1600000000,` + exp + `}`, 1},
		{"nbf future", fmt.Sprintf(`{"user_id":1,"nbf":%d,%s}`, future, exp), 0},
		{"nbf beyond int64", `{"user_id":1,"nbf":1e300,` + exp + `}`, 0},
		{"nbf string", `{"user_id":1,"nbf":"1600000000",` + exp + `}`, 0},
		{"nbf null", `{"user_id":1,"nbf":null,` + exp + `}`, 0},

		{"not an object", `[1]`, 0},
		{"null set", `null`, 0},
		{"string set", `"user_id"`, 0},
		{"empty", ``, 0},
		{"not JSON", `{"user_id":1,` + exp, 0},
		{"trailing", `{"user_id":1,` + exp + `}{}`, 0},
		{"invalid UTF-8", "{\"name\":\"\xff\",\"user_id\":1," + exp + `}`, 0},
		{"byte order mark", "\ufeff{\"user_id\":1," + exp + `}`, 0},
		{"deep", `{"x":` + strings.Repeat("[", 2500) + strings.Repeat("]", 2500) + `,"user_id":1,` + exp + `}`, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			v, token := newVerifier(t, "HS256", testSecret), signHS256(t, test.claims)
			if test.user == 0 {
				mustRefuse(t, v, token)
				return
			}
			grant, err := v.Verify(token)
			if err != nil {
				t.Fatalf("Verify: %v", err)
			}
			if grant.User.Int64() != test.user {
				t.Errorf("the user is %s, want %d", grant.User, test.user)
			}
			if !grant.TokenExpiresAt.After(time.Now()) || grant.TokenExpiresAt.UTC().Year() > 9999 {
				t.Errorf("the token expires at %s", grant.TokenExpiresAt)
			}
		})
	}
}

// There is no leeway, and a fraction of exp counts.
func TestVerifyTimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := newVerifier(t, "HS256", testSecret)
		start := time.Now().Unix()
		expiring := signHS256(t, fmt.Sprintf(`{"user_id":1,"exp":%d.5}`, start+10))
		coming := signHS256(t, fmt.Sprintf(`{"user_id":1,"nbf":%d,"exp":%d}`, start+10, start+20))
		if grant, err := v.Verify(expiring); err != nil || grant.TokenExpiresAt.UnixMilli() != start*1000+10500 {
			t.Errorf("long before exp: %v, %v", grant.TokenExpiresAt, err)
		}
		mustRefuse(t, v, coming)
		time.Sleep(10*time.Second - time.Millisecond)
		mustRefuse(t, v, coming)
		time.Sleep(time.Millisecond)
		if _, err := v.Verify(coming); err != nil {
			t.Errorf("at nbf: %v", err)
		}
		time.Sleep(499 * time.Millisecond)
		if _, err := v.Verify(expiring); err != nil {
			t.Errorf("just before exp: %v", err)
		}
		time.Sleep(time.Millisecond)
		mustRefuse(t, v, expiring)
	})
}

func TestVerifyAlgorithms(t *testing.T) {
	claims := fmt.Sprintf(`{"user_id":77,"exp":%d}`, time.Now().Add(time.Hour).Unix())
	signers := map[string]any{"HS": []byte(testSecret), "RS": rsaKey(), "PS": rsaKey(), "Ed": edKey(), "ES256": p256Key(), "ES384": p384Key(), "ES512": p521Key()}
	signer := func(algorithm string) any {
		if key, ok := signers[algorithm]; ok {
			return key
		}
		return signers[algorithm[:2]]
	}
	keyText := func(algorithm string) string {
		if strings.HasPrefix(algorithm, "HS") {
			return testSecret
		}
		return publicPEM(signer(algorithm).(crypto.Signer))
	}
	tokens := make(map[string]string)
	for _, algorithm := range Algorithms {
		tokens[algorithm] = sign(t, algorithm, `{"alg":"`+algorithm+`"}`, claims, signer(algorithm))
	}
	for _, algorithm := range Algorithms {
		t.Run(algorithm, func(t *testing.T) {
			v := newVerifier(t, algorithm, keyText(algorithm))
			for other, token := range tokens {
				if other != algorithm {
					mustRefuse(t, v, token)
					continue
				}
				grant, err := v.Verify(token)
				if err != nil || grant.User.Int64() != 77 {
					t.Errorf("Verify returned %+v, %v", grant, err)
				}
			}
		})
	}
}

func TestVerifyForgeries(t *testing.T) {
	claims := fmt.Sprintf(`{"user_id":1,"exp":%d}`, time.Now().Add(time.Hour).Unix())
	good := signHS256(t, claims)
	parts := strings.Split(good, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	rsaPublic := publicPEM(rsaKey())
	for _, test := range []struct{ name, algorithm, key, token string }{
		{"alg none without signature", "HS256", testSecret, encode(`{"alg":"none"}`) + "." + parts[1] + "."},
		{"alg none with the signature", "HS256", testSecret, encode(`{"alg":"none"}`) + "." + parts[1] + "." + parts[2]},
		{"alg NoNe", "HS256", testSecret, encode(`{"alg":"NoNe"}`) + "." + parts[1] + "."},
		{"alg empty", "HS256", testSecret, encode(`{"alg":""}`) + "." + parts[1] + "." + parts[2]},
		{"alg missing", "HS256", testSecret, encode(`{"typ":"JWT"}`) + "." + parts[1] + "." + parts[2]},
		{"alg of another type", "HS256", testSecret, encode(`{"alg":["HS256"]}`) + "." + parts[1] + "." + parts[2]},
		{"alg in lower case", "HS256", testSecret, sign(t, "HS256", `{"alg":"hs256"}`, claims, []byte(testSecret))},
		{"alg under another name", "HS256", testSecret, sign(t, "HS256", `{"ALG":"HS256"}`, claims, []byte(testSecret))},
		{"HS512 for HS256", "HS256", testSecret, sign(t, "HS512", `{"alg":"HS512"}`, claims, []byte(testSecret))},
		{"another secret", "HS256", "another secret", good},
		{"header null", "HS256", testSecret, encode(`null`) + "." + parts[1] + "." + parts[2]},
		{"critical extension", "HS256", testSecret, sign(t, "HS256", `{"alg":"HS256","crit":["b64"],"b64":false}`, claims, []byte(testSecret))},

		{"public key as HMAC secret", "RS256", rsaPublic, sign(t, "HS256", `{"alg":"HS256"}`, claims, []byte(rsaPublic))},
		{"public key as HMAC secret, alg RS256", "RS256", rsaPublic, sign(t, "HS256", `{"alg":"RS256"}`, claims, []byte(rsaPublic))},
		{"PS256 for RS256", "RS256", rsaPublic, sign(t, "PS256", `{"alg":"PS256"}`, claims, rsaKey())},
		{"another RSA key", "RS256", rsaPublic, sign(t, "RS256", `{"alg":"RS256"}`, claims, must(rsa.GenerateKey(rand.Reader, 2048)))},
		{"key in the token", "RS256", rsaPublic, sign(t, "RS256", `{"alg":"RS256","jwk":{"kty":"RSA"},"jku":"https://evil.example"}`, claims, must(rsa.GenerateKey(rand.Reader, 2048)))},
		{"ES256 signature of zeros", "ES256", publicPEM(p256Key()), encode(`{"alg":"ES256"}`) + "." + parts[1] + "." + base64.RawURLEncoding.EncodeToString(make([]byte, 64))},

		{"empty", "HS256", testSecret, ""},
		{"dots", "HS256", testSecret, ".."},
		{"many dots", "HS256", testSecret, strings.Repeat(".", 5000)},
		{"two parts", "HS256", testSecret, parts[0] + "." + parts[1]},
		{"four parts", "HS256", testSecret, good + "." + parts[2]},
		{"no signature", "HS256", testSecret, parts[0] + "." + parts[1] + "."},
		{"cut signature", "HS256", testSecret, good[:len(good)-4]},
		{"longer signature", "HS256", testSecret, good + "AAAA"},
		{"padding", "HS256", testSecret, good + "="},
		{"space", "HS256", testSecret, " " + good},
		{"line end inside", "HS256", testSecret, good[:20] + "\n" + good[20:]},
		{"other claims", "HS256", testSecret, parts[0] + "." + encode(strings.Replace(claims, ":1,", ":2,", 1)) + "." + parts[2]},
	} {
		t.Run(test.name, func(t *testing.T) {
			mustRefuse(t, newVerifier(t, test.algorithm, test.key), test.token)
		})
	}
}

// The last character of a signature carries bits that mean nothing; a token must be
// the one that was signed, bit by bit.
func TestVerifyStrictEncoding(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	v := newVerifier(t, "HS256", testSecret)
	token := signHS256(t, fmt.Sprintf(`{"user_id":1,"exp":%d}`, time.Now().Add(time.Hour).Unix()))
	accepted := 0
	for _, last := range alphabet {
		if _, err := v.Verify(token[:len(token)-1] + string(last)); err == nil {
			accepted++
		}
	}
	if accepted != 1 {
		t.Errorf("%d spellings of one token are accepted, want 1", accepted)
	}
}

func TestNewVerifierKeys(t *testing.T) {
	pkcs1 := pemText("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&rsaKey().PublicKey))
	for _, test := range []struct{ name, algorithm, key, fault string }{
		{"PKIX", "RS256", publicPEM(rsaKey()), ""},
		{"line ends as \\n", "RS256", strings.ReplaceAll(publicPEM(rsaKey()), "\n", `\n`), ""},
		{"PKCS #1", "PS384", pkcs1, ""},
		{"certificate", "RS512", certificatePEM(rsaKey()), ""},
		{"elliptic certificate", "ES256", certificatePEM(p256Key()), ""},
		{"Ed25519 certificate", "EdDSA", certificatePEM(edKey()), ""},
		{"text around the block", "RS256", "# the issuer's key\n" + pkcs1 + "\n", ""},
		{"certificate chain", "ES384", certificatePEM(p384Key()) + certificatePEM(rsaKey()), ""},

		{"no algorithm", "", testSecret, "must be one of"},
		{"none", "none", testSecret, "must be one of"},
		{"lower case", "hs256", testSecret, "must be one of"},
		{"no secret", "HS256", "", "it is empty"},
		{"public key as a secret", "HS256", publicPEM(rsaKey()), "not a PEM block"},
		{"private key as a secret", "HS384", "\n" + privatePEM(rsaKey()), "not a PEM block"},
		{"secret as a public key", "RS256", testSecret, "no PEM block"},
		{"no public key", "ES256", "", "no PEM block"},
		{"private key", "RS256", privatePEM(rsaKey()), "private key"},
		{"PKCS #1 private key", "RS256", pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey())), "private key"},
		{"SEC 1 private key", "ES256", pemText("EC PRIVATE KEY", must(x509.MarshalECPrivateKey(p256Key()))), "private key"},
		{"private key after the public one", "RS256", pkcs1 + privatePEM(rsaKey()), "private key"},
		{"elliptic key for RS256", "RS256", publicPEM(p256Key()), "not an elliptic curve key"},
		{"RSA key for ES256", "ES256", publicPEM(rsaKey()), "not an RSA key"},
		{"RSA key for EdDSA", "EdDSA", publicPEM(rsaKey()), "not an RSA key"},
		{"Ed25519 key for PS256", "PS256", publicPEM(edKey()), "not an Ed25519 key"},
		{"P-384 for ES256", "ES256", publicPEM(p384Key()), "P-256"},
		{"P-256 for ES512", "ES512", publicPEM(p256Key()), "P-521"},
		{"short RSA key", "RS256", publicPEM(smallKey()), "2048 bits"},
		{"broken public key", "RS256", pemText("PUBLIC KEY", []byte("sesame")), "can't be read"},
		{"broken PKCS #1", "RS256", pemText("RSA PUBLIC KEY", []byte("sesame")), "can't be read"},
		{"broken certificate", "RS256", pemText("CERTIFICATE", []byte("sesame")), "can't be read"},
		{"certificate request", "RS256", pemText("CERTIFICATE REQUEST", []byte("sesame")), "no PEM block"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewVerifier(TokenConfig{Algorithm: test.algorithm, Key: test.key})
			if test.fault == "" {
				if err != nil {
					t.Errorf("NewVerifier: %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.fault) {
				t.Fatalf("NewVerifier: %v, want an error with %q", err, test.fault)
			}
			for line := range strings.SplitSeq(test.key, "\n") {
				if len(line) > 8 && strings.Contains(err.Error(), line) {
					t.Errorf("the error shows the key: %v", err)
				}
			}
		})
	}
}

func TestSignToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		user, err := domain.NewUserID(1<<53 + 1)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(300 * time.Millisecond) // not on a full second
		for _, algorithm := range []string{"HS256", "HS384", "HS512"} {
			cfg := TokenConfig{Algorithm: algorithm, Key: testSecret}
			token, err := SignToken(cfg, user, time.Minute)
			if err != nil {
				t.Fatalf("%s: %v", algorithm, err)
			}
			grant, err := newVerifier(t, algorithm, testSecret).Verify(token)
			if err != nil || grant.User != user {
				t.Errorf("%s: Verify returned %+v, %v", algorithm, grant, err)
			}
			if left := time.Until(grant.TokenExpiresAt); left < time.Minute || left >= time.Minute+time.Second {
				t.Errorf("%s: the token is good for %s, want 60s to 61s", algorithm, left)
			}
		}
		for _, cfg := range []TokenConfig{{"RS256", publicPEM(rsaKey())}, {"EdDSA", publicPEM(edKey())}, {"HS256", ""}, {"none", testSecret}} {
			if token, err := SignToken(cfg, user, time.Minute); err == nil {
				t.Errorf("%s: got a token %q", cfg.Algorithm, token)
			}
		}
		if _, err := SignToken(TokenConfig{"HS256", testSecret}, domain.UserID{}, time.Minute); err == nil {
			t.Error("got a token for nobody")
		}
	})
}

func FuzzVerify(f *testing.F) {
	exp := fmt.Sprintf(`"exp":%d`, time.Now().Add(24*time.Hour).Unix())
	for _, claims := range []string{`{"user_id":1,` + exp + `}`, `{"user_id":1.0,` + exp + `}`, `{"exp":1e300}`, `null`, `{`, "\xff"} {
		f.Add(`{"alg":"HS256"}`, claims, true)
		f.Add(`{"alg":"none"}`, claims, false)
	}
	v := newVerifier(f, "HS256", testSecret)
	f.Fuzz(func(t *testing.T, header, claims string, signed bool) {
		token := header
		if signed {
			token = sign(t, "HS256", header, claims, []byte(testSecret))
		}
		grant, err := v.Verify(token)
		if err != nil {
			if !errors.Is(err, app.ErrUnauthenticated) {
				t.Fatalf("the error is %v", err)
			}
			if grant != (app.Grant{}) {
				t.Fatalf("a refused token grants %+v", grant)
			}
			return
		}
		if !signed {
			t.Fatalf("an unsigned token was taken: %q", token)
		}
		if grant.User.Int64() < 1 || !grant.TokenExpiresAt.After(time.Now().Add(-time.Minute)) || grant.TokenExpiresAt.UTC().Year() > 9999 {
			t.Fatalf("a token with %q grants %+v", claims, grant)
		}
		if !strings.Contains(claims, grant.User.String()) {
			t.Fatalf("the user of %q is %s", claims, grant.User)
		}
	})
}
