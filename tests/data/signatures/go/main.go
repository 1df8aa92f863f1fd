// Signs a body as Go does by default: rsa.SignPSS with nil options, whose salt is the longest
// possible (222 bytes for a 2048-bit key). Prints the vector that go.json holds:
//
//	go run tests/data/signatures/go/main.go > tests/data/signatures/go.json
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"math/big"
	"os"
)

func main() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	body := `{"app_id":"54e9ujn","events":[{"id":"evt_go","type":"user.created","payload":{"user_id":"usr_1"}}]}`
	digest := sha256.Sum256([]byte(body))
	signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], nil)
	if err != nil {
		panic(err)
	}
	encode := base64.RawURLEncoding.EncodeToString
	jwk := map[string]string{
		"kty": "RSA", "use": "sig", "alg": "PS256", "kid": "go",
		"n": encode(key.N.Bytes()),
		"e": encode(big.NewInt(int64(key.E)).Bytes()),
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	err = out.Encode(map[string]any{
		"body":      body,
		"signature": "rsassa-pss-sha256=" + encode(signature),
		"jwks":      map[string]any{"keys": []any{jwk}},
	})
	if err != nil {
		panic(err)
	}
}
