package objects_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"sync"
	"testing"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

const signerName = "example.com/signer"

// TestCertificatesAsANode: what a node's identity may do is enough for ClusterTrustBundles and for
// certificates of pods, and what is asked for is what the API server takes.
func TestCertificatesAsANode(t *testing.T) {
	cluster := testcluster.Start(t, testcluster.Options{APIServer: []string{
		"--feature-gates=ClusterTrustBundle=true,ClusterTrustBundleProjection=true,PodCertificateRequest=true",
		"--runtime-config=certificates.k8s.io/v1beta1=true",
	}})
	signer, authority := newAuthority(t)
	bundle := &corev1.ClusterTrustBundleProjection{SignerName: ptrTo(signerName), LabelSelector: &metav1.LabelSelector{}, Path: "ca.pem"}
	certificate := &corev1.PodCertificateProjection{SignerName: signerName, KeyType: "ECDSAP256", CredentialBundlePath: "bundle.pem"}
	pod := createPod(t, cluster, corev1.Volume{Name: "tls", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ClusterTrustBundle: bundle}, {PodCertificate: certificate}},
	}}})
	self, err := cluster.Admin.CoreV1().Nodes().Get(t.Context(), "n1", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	node := cluster.Client(cluster.CA.Issue(t, "system:node:n1", "system:nodes"))
	src := objects.NewSource(ctx, node, objects.Options{Node: func() *corev1.Node { return self }, FirstAnswer: time.Minute})
	var signing sync.WaitGroup
	defer func() { cancel(); signing.Wait(); src.Wait() }()
	src.Register(pod)

	if texts, err := src.TrustBundles(ctx, bundle); err != nil || len(texts) > 0 {
		t.Fatalf("before there is a bundle: %q, %v", texts, err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: authority.Raw}))
	if _, err := cluster.Admin.CertificatesV1beta1().ClusterTrustBundles().Create(t.Context(), &certificatesv1beta1.ClusterTrustBundle{
		ObjectMeta: metav1.ObjectMeta{Name: "example.com:signer:one"},
		Spec:       certificatesv1beta1.ClusterTrustBundleSpec{SignerName: signerName, TrustBundle: text},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the bundle", func() bool {
		texts, err := src.TrustBundles(ctx, bundle)
		return err == nil && len(texts) == 1 && texts[0] == text
	})

	signing.Go(func() { signRequests(ctx, t, cluster, signer, authority) })
	kept := &keptState{}
	credential, err := src.PodCertificate(ctx, objects.CertificateSource{Pod: pod, Volume: "tls", Index: 1, Spec: certificate, Kept: kept})
	if err != nil {
		t.Fatal(err)
	}
	signing.Wait()
	if _, err := tls.X509KeyPair(credential.Chain, credential.Key); err != nil {
		t.Errorf("key and certificates: %v", err)
	}
	if len(kept.state) == 0 {
		t.Error("nothing is kept")
	}
}

type keptState struct{ state []byte }

func (k *keptState) Load() ([]byte, error)   { return k.state, nil }
func (k *keptState) Save(state []byte) error { k.state = state; return nil }

func ptrTo[T any](v T) *T { return &v }

func newAuthority(t *testing.T) (*ecdsa.PrivateKey, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "signer"}, NotBefore: now, NotAfter: now.Add(48 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return key, certificate
}

// signRequests signs the first request that there is.
func signRequests(ctx context.Context, t *testing.T, cluster *testcluster.Cluster, key *ecdsa.PrivateKey, authority *x509.Certificate) {
	api := cluster.Admin.CertificatesV1beta1().PodCertificateRequests("default")
	for ctx.Err() == nil {
		list, err := api.List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) == 0 {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		request := &list.Items[0]
		public, err := x509.ParsePKIXPublicKey(request.Spec.PKIXPublicKey)
		if err != nil {
			t.Errorf("the request's key: %v", err)
			return
		}
		begin := time.Now().Truncate(time.Second)
		end := begin.Add(time.Duration(*request.Spec.MaxExpirationSeconds) * time.Second)
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: request.Spec.PodName}, NotBefore: begin, NotAfter: end,
		}, authority, public, key)
		if err != nil {
			t.Errorf("sign: %v", err)
			return
		}
		request.Status = certificatesv1beta1.PodCertificateRequestStatus{
			Conditions: []metav1.Condition{{
				Type: certificatesv1beta1.PodCertificateRequestConditionTypeIssued, Status: metav1.ConditionTrue, Reason: "Issued", LastTransitionTime: metav1.NewTime(begin),
			}},
			CertificateChain: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
			NotBefore:        ptrTo(metav1.NewTime(begin)), BeginRefreshAt: ptrTo(metav1.NewTime(begin.Add(time.Hour))), NotAfter: ptrTo(metav1.NewTime(end)),
		}
		if _, err := api.UpdateStatus(ctx, request, metav1.UpdateOptions{}); err != nil && ctx.Err() == nil {
			t.Errorf("update the request: %v", err)
		}
		return
	}
}
