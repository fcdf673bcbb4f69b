package bootstrap

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/cert"
	bootstrapapi "k8s.io/cluster-bootstrap/token/api"
	"k8s.io/cluster-bootstrap/token/jws"
)

// Token is a bootstrap token, "id.secret".
type Token struct{ ID, Secret string }

var tokenForm = regexp.MustCompile(`^([a-z0-9]{6})\.([a-z0-9]{16})$`)

// ParseToken checks the form of a bootstrap token. The error does not show it.
func ParseToken(text string) (Token, error) {
	m := tokenForm.FindStringSubmatch(text)
	if m == nil {
		return Token{}, errors.New("the bootstrap token must look like abcdef.0123456789abcdef (kubeadm token create makes one)")
	}
	return Token{m[1], m[2]}, nil
}

// String is the token as the API server takes it: a secret.
func (t Token) String() string { return t.ID + "." + t.Secret }

// Pin is the SHA-256 of a CA certificate's public key (SubjectPublicKeyInfo).
type Pin [sha256.Size]byte

// ParsePin reads "sha256:<64 hex digits>", as kubeadm prints it.
func ParsePin(text string) (pin Pin, err error) {
	digits, ok := strings.CutPrefix(strings.ToLower(text), "sha256:")
	raw, err := hex.DecodeString(digits)
	if !ok || err != nil || len(raw) != len(pin) {
		return pin, fmt.Errorf("the CA hash %q must be sha256: and 64 hexadecimal digits", text)
	}
	copy(pin[:], raw)
	return pin, nil
}

// PinOf is the pin of a certificate.
func PinOf(c *x509.Certificate) Pin { return sha256.Sum256(c.RawSubjectPublicKeyInfo) }

// clusterInfoPath is readable by anybody in a cluster that takes bootstrap tokens.
const clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"

// maxClusterInfo bounds what an unverified server may send.
const maxClusterInfo = 1 << 20

// Discover returns the cluster's CA certificates (PEM), taken from the first API server
// that answers: the cluster-info there must be signed with the token, and its CA must match
// a pin. Then the same is read again with that CA as the only trusted one. Without pins the
// token alone vouches for the CA; callers must have the user's word for that.
func Discover(ctx context.Context, servers []string, token Token, pins []Pin) ([]byte, error) {
	var failed []error
	for _, server := range servers {
		ca, err := discover(ctx, server, token, pins)
		if err == nil {
			return ca, nil
		}
		failed = append(failed, fmt.Errorf("discover the cluster at %s: %w", server, err))
	}
	return nil, errors.Join(failed...)
}

func discover(ctx context.Context, server string, token Token, pins []Pin) ([]byte, error) {
	// The first answer is not trusted until its signature and pin are checked.
	info, err := getClusterInfo(ctx, server, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, err
	}
	ca, err := verifyClusterInfo(info, token, pins)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	again, err := getClusterInfo(ctx, server, &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12})
	if err != nil {
		return nil, fmt.Errorf("the server's certificate does not come from the cluster's CA: %w", err)
	}
	secure, err := verifyClusterInfo(again, token, pins)
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(secure, ca) {
		return nil, errors.New("the cluster's CA changed between two reads: somebody may be in between")
	}
	return ca, nil
}

func getClusterInfo(ctx context.Context, server string, config *tls.Config) (*corev1.ConfigMap, error) {
	client := &http.Client{
		Timeout:   20 * time.Second,
		Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return errors.New("the server redirects, which no API server does")
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server+clusterInfoPath, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxClusterInfo))
	if err != nil {
		return nil, fmt.Errorf("read cluster-info: %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return nil, errors.New("there is no ConfigMap kube-public/cluster-info: kubeadm makes it, see also the controllers bootstrapsigner and tokencleaner")
	case resp.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("read cluster-info: %s", resp.Status)
	}
	info := &corev1.ConfigMap{}
	if err := json.Unmarshal(body, info); err != nil {
		return nil, fmt.Errorf("decode cluster-info: %w", err)
	}
	return info, nil
}

// verifyClusterInfo returns the CA that the ConfigMap names, if token and pins vouch for it.
func verifyClusterInfo(info *corev1.ConfigMap, token Token, pins []Pin) ([]byte, error) {
	kubeconfig := info.Data[bootstrapapi.KubeConfigKey]
	signature := info.Data[bootstrapapi.JWSSignatureKeyPrefix+token.ID]
	if kubeconfig == "" {
		return nil, errors.New("cluster-info holds no kubeconfig")
	}
	if signature == "" {
		return nil, fmt.Errorf("cluster-info is not signed for token %s: it is unknown, has expired or lacks the usage signing", token.ID)
	}
	if !jws.DetachedTokenIsValid(signature, kubeconfig, token.ID, token.Secret) {
		return nil, errors.New("cluster-info's signature does not match the token: a wrong token, or not your cluster")
	}
	config, err := clientcmd.Load([]byte(kubeconfig))
	if err != nil {
		return nil, fmt.Errorf("decode cluster-info: %w", err)
	}
	for _, cluster := range config.Clusters {
		if len(cluster.CertificateAuthorityData) > 0 {
			return cluster.CertificateAuthorityData, checkPins(cluster.CertificateAuthorityData, pins)
		}
	}
	return nil, errors.New("cluster-info names no certificate authority")
}

// checkPins wants a pin to match one of the CA's certificates; no pins want nothing.
func checkPins(ca []byte, pins []Pin) error {
	certs, err := cert.ParseCertsPEM(ca)
	if err != nil {
		return fmt.Errorf("decode the cluster's CA: %w", err)
	}
	if len(pins) == 0 {
		return nil
	}
	var found []string
	for _, c := range certs {
		have := PinOf(c)
		for _, pin := range pins {
			if subtle.ConstantTimeCompare(have[:], pin[:]) == 1 {
				return nil
			}
		}
		found = append(found, "sha256:"+hex.EncodeToString(have[:]))
	}
	return fmt.Errorf("the cluster's CA does not match --ca-hash: it is %s", strings.Join(found, ", "))
}
