// Signs a body as Go does by default: rsa.SignPSS with nil options, whose salt is the longest
// possible (222 bytes for a 2048-bit key). Prints the vector that go.json holds, or with an argument
// that of go-single.json: a single event with a signature for each salt length, and its key in PEM.
//
//	go run tests/data/signatures/go/main.go > tests/data/signatures/go.json
//	go run tests/data/signatures/go/main.go single > tests/data/signatures/go-single.json
package main

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"os"
)

func main() {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	if len(os.Args) > 1 {
		single(key)
		return
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

func single(key *rsa.PrivateKey) {
	body := `{"id":"evt_go","type":"verify.attempt","payload":{"id":"att_1"},"created_at":"2026-11-01T00:00:00.123456789Z"}`
	digest := sha256.Sum256([]byte(body))
	signatures := map[int]string{}
	// Go has no name for a salt of no bytes: its zero means the longest.
	for _, salt := range []int{20, 32, 222} {
		options := &rsa.PSSOptions{SaltLength: salt}
		signature, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest[:], options)
		if err != nil {
			panic(err)
		}
		signatures[salt] = "rsassa-pss-sha256=" + base64.RawURLEncoding.EncodeToString(signature)
	}
	spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		panic(err)
	}
	out := json.NewEncoder(os.Stdout)
	out.SetEscapeHTML(false)
	out.SetIndent("", "  ")
	err = out.Encode(map[string]any{
		"body":       body,
		"signatures": signatures,
		"pem":        string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki})),
	})
	if err != nil {
		panic(err)
	}
}
