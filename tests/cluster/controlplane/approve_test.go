package controlplane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

func TestApproveOnlyTheNodesOwnAddresses(t *testing.T) {
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "metal-0"}, Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{
		{Type: corev1.NodeInternalIP, Address: "10.9.0.10"},
		{Type: corev1.NodeInternalIP, Address: "fd00:9::a"},
		{Type: corev1.NodeHostName, Address: "metal-0"},
	}}}
	own := x509.CertificateRequest{
		Subject:     pkix.Name{CommonName: "system:node:metal-0", Organization: []string{"system:nodes"}},
		DNSNames:    []string{"metal-0"},
		IPAddresses: []net.IP{net.ParseIP("10.9.0.10"), net.ParseIP("fd00:9:0::000a")},
	}
	foreign, otherName := own, own
	foreign.IPAddresses = []net.IP{net.ParseIP("10.9.0.11")}
	otherName.Subject.CommonName = "system:node:metal-1"
	cases := map[string]struct {
		csr    x509.CertificateRequest
		user   string
		groups []string
		want   string // part of the error; "" is approval
	}{
		"own":             {own, "system:node:metal-0", []string{"system:nodes"}, ""},
		"foreign address": {foreign, "system:node:metal-0", []string{"system:nodes"}, "10.9.0.11 is not an address"},
		"other's name":    {otherName, "system:node:metal-0", []string{"system:nodes"}, "is not the node's"},
		"no node":         {own, "system:node:metal-0", []string{"system:bootstrappers"}, "no node"},
		"unknown node":    {own, "system:node:metal-7", []string{"system:nodes"}, "not found"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			request := &certificatesv1.CertificateSigningRequest{
				ObjectMeta: metav1.ObjectMeta{Name: "csr-1"},
				Spec:       certificatesv1.CertificateSigningRequestSpec{Request: encode(t, c.csr), Username: c.user, Groups: c.groups},
			}
			client := fake.NewClientset(node, request)
			err := approve(t.Context(), client, request)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Fatalf("got %v, want %q", err, c.want)
			}
			after, err := client.CertificatesV1().CertificateSigningRequests().Get(t.Context(), "csr-1", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if approved := len(after.Status.Conditions) == 1; approved != (c.want == "") {
				t.Errorf("approved = %t", approved)
			}
		})
	}
}

func encode(t *testing.T, template x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
