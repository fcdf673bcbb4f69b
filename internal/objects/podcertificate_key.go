package objects

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
)

// podKey is a private key for a pod.
type podKey struct {
	signer crypto.Signer
	pem    []byte // PKCS#8
	public []byte // PKIX
}

// newKey makes a key of one of the API's types; one at a time.
func (c *certificateCache) newKey(ctx context.Context, kind string) (*podKey, error) {
	select {
	case c.making <- struct{}{}:
		defer func() { <-c.making }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	signer, err := newSigner(kind)
	if err != nil {
		return nil, fmt.Errorf("make key of type %q: %w", kind, err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, fmt.Errorf("make key of type %q: %w", kind, err)
	}
	public, err := x509.MarshalPKIXPublicKey(signer.Public())
	if err != nil {
		return nil, fmt.Errorf("make key of type %q: %w", kind, err)
	}
	return &podKey{signer: signer, pem: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), public: public}, nil
}

func newSigner(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(rand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(rand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case "ED25519":
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	}
	return nil, errors.New("keyType must be one of RSA3072, RSA4096, ECDSAP256, ECDSAP384, ECDSAP521, ED25519")
}

// prove signs the pod's UID as the API's PodCertificateRequestSpec.proofOfPossession has it: PSS for
// RSA, ASN.1 for ECDSA, both of a SHA-256, and the UID itself for Ed25519.
func (k *podKey) prove(podUID string) ([]byte, error) {
	digest := sha256.Sum256([]byte(podUID))
	var proof []byte
	var err error
	switch signer := k.signer.(type) {
	case *rsa.PrivateKey:
		proof, err = rsa.SignPSS(rand.Reader, signer, crypto.SHA256, digest[:], nil)
	case *ecdsa.PrivateKey:
		proof, err = ecdsa.SignASN1(rand.Reader, signer, digest[:])
	default:
		proof, err = k.signer.Sign(rand.Reader, []byte(podUID), crypto.Hash(0))
	}
	if err != nil {
		return nil, fmt.Errorf("prove possession of a key: %w", err)
	}
	return proof, nil
}
