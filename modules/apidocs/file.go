package apidocs

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// file is what one address serves: ready bytes, with their validator.
type file struct {
	contentType string
	policy      string // Content-Security-Policy of a page, else none
	etag        string
	body        []byte
	gzipped     bool // body is compressed with gzip
}

func newFile(contentType string, body []byte) file {
	digest := sha256.Sum256(body)
	return file{
		contentType: contentType,
		// Weak, since one tag stands for the compressed and the plain form
		// (RFC 9110, section 8.8.3.3).
		etag: `W/"` + base64.RawURLEncoding.EncodeToString(digest[:12]) + `"`,
		body: body,
	}
}

// ServeHTTP answers GET and HEAD.
func (f file) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	header := w.Header()
	// Asked for again each time: the documents must be those of the running version.
	header.Set("Cache-Control", "no-cache")
	header.Set("ETag", f.etag)
	if f.gzipped {
		header.Set("Vary", "Accept-Encoding")
	}
	if f.policy != "" {
		header.Set("Content-Security-Policy", f.policy)
	}
	if strings.Contains(r.Header.Get("If-None-Match"), f.etag) {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	header.Set("Content-Type", f.contentType)
	var body io.Reader = bytes.NewReader(f.body)
	switch {
	case f.gzipped && !acceptsGzip(r):
		plain, err := gzip.NewReader(body)
		if err != nil {
			// The bytes were compressed when the program was built.
			panic("apidocs: an embedded file is not gzip: " + err.Error())
		}
		body = plain
	case f.gzipped:
		header.Set("Content-Encoding", "gzip")
		fallthrough
	default:
		header.Set("Content-Length", strconv.Itoa(len(f.body)))
	}
	if r.Method != http.MethodHead {
		_, _ = io.Copy(w, body) // fails only where the client has gone
	}
}

// acceptsGzip reads Accept-Encoding (RFC 9110, section 12.5.3) as far as browsers
// use it: a weight of 0 refuses.
func acceptsGzip(r *http.Request) bool {
	for _, line := range r.Header.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(line, ",") {
			name, weight, _ := strings.Cut(coding, ";")
			if !strings.EqualFold(strings.TrimSpace(name), "gzip") {
				continue
			}
			_, value, _ := strings.Cut(weight, "=")
			q, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			return weight == "" || err == nil && q > 0
		}
	}
	return false
}
