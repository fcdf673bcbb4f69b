package objects

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/testapi"
)

func ptr[T any](v T) *T { return &v }

// memory is a Kept.
type memory struct{ state []byte }

func (m *memory) Load() ([]byte, error)   { return m.state, nil }
func (m *memory) Save(state []byte) error { m.state = bytes.Clone(state); return nil }

// certificateWorld is an API server with a signer, and agents that come one after the other.
type certificateWorld struct {
	t      *testing.T
	client *fake.Clientset
	asked  []*certificatesv1beta1.PodCertificateRequest
	down   error // what a request is answered with
	warned []string
	kept   memory
	source CertificateSource

	cache *Cache
	told  chan string
	end   func()
}

var requestResource = certificatesv1beta1.SchemeGroupVersion.WithResource("podcertificaterequests")

func newCertificateWorld(t *testing.T, seconds int32) *certificateWorld {
	t.Helper()
	w := &certificateWorld{t: t, told: make(chan string, 1000), client: testapi.NewClientset(&corev1.ServiceAccount{
		ObjectMeta: metav1.ObjectMeta{Name: "robot", Namespace: "ns", UID: "account-uid"},
	})}
	w.client.Resources = served("v1beta1", "podcertificaterequests")
	w.client.PrependReactor("create", "podcertificaterequests", w.create)
	spec := &corev1.PodCertificateProjection{
		SignerName: "example.com/s", KeyType: "ED25519", MaxExpirationSeconds: &seconds, UserAnnotations: map[string]string{"example.com/a": "b"},
	}
	pod := podOfSources("p", corev1.VolumeProjection{PodCertificate: spec})
	pod.Spec.ServiceAccountName = "robot"
	w.source = CertificateSource{Pod: pod, Volume: "v", Spec: spec, Kept: &w.kept}
	w.restart()
	t.Cleanup(func() { w.end() })
	return w
}

// create names requests, which a fake clientset does not.
func (w *certificateWorld) create(a clienttesting.Action) (bool, runtime.Object, error) {
	if w.down != nil {
		return true, nil, w.down
	}
	request := a.(clienttesting.CreateAction).GetObject().(*certificatesv1beta1.PodCertificateRequest).DeepCopy()
	request.Name, request.ResourceVersion = fmt.Sprintf("req-%d", len(w.asked)+1), "1"
	w.asked = append(w.asked, request)
	return true, request, w.client.Tracker().Create(requestResource, request, request.Namespace)
}

// restart is an agent that ends and one that starts.
func (w *certificateWorld) restart() {
	if w.end != nil {
		w.end()
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	c := NewSource(ctx, w.client, Options{
		FirstAnswer: 5 * time.Second,
		Node:        func() *corev1.Node { return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1", UID: "node-uid"}} },
		Warn:        func(_ *corev1.Pod, reason, message string) { w.warned = append(w.warned, reason+": "+message) },
	})
	c.OnChange(func(uid string) { w.told <- uid })
	c.Register(w.source.Pod)
	w.cache, w.end = c, func() { cancel(); c.Wait() }
}

// settle ends the last request with a condition.
func (w *certificateWorld) settle(condition, reason, message string, status certificatesv1beta1.PodCertificateRequestStatus) {
	w.t.Helper()
	synctest.Wait()
	request := w.asked[len(w.asked)-1].DeepCopy()
	request.ResourceVersion = "2"
	request.Status = status
	request.Status.Conditions = []metav1.Condition{{Type: condition, Status: metav1.ConditionTrue, Reason: reason, Message: message}}
	if err := w.client.Tracker().Update(requestResource, request, request.Namespace); err != nil {
		w.t.Fatal(err)
	}
	synctest.Wait()
}

// issue signs the last request, for two hours, to be renewed after one.
func (w *certificateWorld) issue() {
	w.t.Helper()
	text := "a word before\n" + string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: []byte("leaf")}))
	w.settle("Issued", "Issued", "", certificatesv1beta1.PodCertificateRequestStatus{
		CertificateChain: text, BeginRefreshAt: ptr(metav1.NewTime(time.Now().Add(time.Hour))), NotAfter: ptr(metav1.NewTime(time.Now().Add(2 * time.Hour))),
	})
}

// get wants a credential for the key of the n-th request.
func (w *certificateWorld) get(n int) Credential {
	w.t.Helper()
	got, err := w.cache.PodCertificate(w.t.Context(), w.source)
	if err != nil {
		w.t.Fatal(err)
	}
	if public := publicOf(w.t, got.Key); !bytes.Equal(public, w.asked[n-1].Spec.PKIXPublicKey) {
		w.t.Errorf("the key is not of request %d", n)
	}
	if want := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("leaf")})); string(got.Chain) != want {
		w.t.Errorf("chain %q, want %q", got.Chain, want)
	}
	return got
}

func (w *certificateWorld) wantAsked(n int) {
	w.t.Helper()
	synctest.Wait()
	if len(w.asked) != n {
		w.t.Fatalf("%d requests, want %d", len(w.asked), n)
	}
}

// first gets the first credential.
func (w *certificateWorld) first() {
	w.t.Helper()
	done := make(chan error)
	go func() {
		_, err := w.cache.PodCertificate(w.t.Context(), w.source)
		done <- err
	}()
	w.issue()
	if err := <-done; err != nil {
		w.t.Fatal(err)
	}
}

func publicOf(t *testing.T, private []byte) []byte {
	t.Helper()
	block, rest := pem.Decode(private)
	if block == nil || block.Type != "PRIVATE KEY" || len(rest) > 0 {
		t.Fatal("not one private key in PEM")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
	if err != nil {
		t.Fatal(err)
	}
	return public
}

func TestCertificateOfAPod(t *testing.T) { synctest.Test(t, testCertificateOfAPod) }

func testCertificateOfAPod(t *testing.T) {
	w := newCertificateWorld(t, 7200)
	w.first()
	w.get(1)
	spec := w.asked[0].Spec
	want := certificatesv1beta1.PodCertificateRequestSpec{
		SignerName: "example.com/s", PodName: "pod-p", PodUID: "p", ServiceAccountName: "robot", ServiceAccountUID: "account-uid",
		NodeName: "n1", NodeUID: "node-uid", MaxExpirationSeconds: ptr(int32(7200)), PKIXPublicKey: spec.PKIXPublicKey, ProofOfPossession: spec.ProofOfPossession,
		UnverifiedUserAnnotations: map[string]string{"example.com/a": "b"},
	}
	if !equality.Semantic.DeepEqual(spec, want) {
		t.Errorf("request %+v, want %+v", spec, want)
	}
	if owner := w.asked[0].OwnerReferences; len(owner) != 1 || owner[0].UID != "p" || owner[0].Kind != "Pod" {
		t.Errorf("owners %+v", owner)
	}
	// While it is good nothing is asked, whoever looks, also after a restart.
	w.restart()
	old := w.get(1)
	w.wantAsked(1)
	toldNow(w.told)
	// When it is due the pod is told, and a new key is asked for; the old one stays until then.
	time.Sleep(time.Hour + renewalJitter)
	if told := toldNow(w.told); len(told) != 1 {
		t.Errorf("told %v when it is due", told)
	}
	w.get(1)
	w.wantAsked(2)
	// Also a request that is going on outlives the agent.
	w.restart()
	w.get(1)
	w.wantAsked(2)
	toldNow(w.told)
	w.issue()
	if told := toldNow(w.told); len(told) != 1 {
		t.Errorf("told %v when it is issued", told)
	}
	if renewed := w.get(2); bytes.Equal(renewed.Key, old.Key) {
		t.Error("the key is the old one")
	}
	// A signer that refuses leaves what there is, and is not asked again.
	time.Sleep(time.Hour + renewalJitter)
	w.get(2)
	w.wantAsked(3)
	w.settle("Denied", "Policy", "not any more", certificatesv1beta1.PodCertificateRequestStatus{})
	for range 2 {
		w.get(2)
	}
	w.wantAsked(3)
	if got := strings.Join(w.warned, "; "); got != `Denied: PodCertificateRequest ns/req-3 was denied, reason="Policy", message="not any more"` {
		t.Errorf("events %s", got)
	}
	// Nothing is left of a pod that is gone.
	w.cache.Unregister("p")
	if n := len(w.cache.certificates.sources) + len(w.cache.certificates.timers); n != 0 || w.cache.collected(kindRequest) != nil {
		t.Errorf("%d things are left of the pod", n)
	}
	if _, err := w.cache.PodCertificate(t.Context(), w.source); err == nil {
		t.Error("a certificate for a pod that is gone")
	}
}

func TestCertificateThatIsNotIssued(t *testing.T) {
	for name, tc := range map[string]struct {
		condition, want string
	}{
		"denied": {"Denied", `PodCertificateRequest was permanently denied: reason="Why" message="because"`},
		"failed": {"Failed", `PodCertificateRequest was permanently failed: reason="Why" message="because"`},

		"issued without anything": {"Issued", "was issued without certificateChain"},

		"no answer": {"", "credential bundle is not issued yet"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testCertificateThatIsNotIssued(t, tc.condition, tc.want) })
		})
	}
}

func testCertificateThatIsNotIssued(t *testing.T, condition, want string) {
	w := newCertificateWorld(t, 3600)
	done := make(chan error)
	go func() {
		_, err := w.cache.PodCertificate(t.Context(), w.source)
		done <- err
	}()
	if condition != "" {
		w.settle(condition, "Why", "because", certificatesv1beta1.PodCertificateRequestStatus{})
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %s", err, want)
	}
	if condition == "" { // late, it is taken
		w.issue()
		w.get(1)
	} else if _, err := w.cache.PodCertificate(t.Context(), w.source); err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("once more: %v, want %s", err, want)
	}
	w.wantAsked(1)
}

func TestRequestThatIsGone(t *testing.T) { synctest.Test(t, testRequestThatIsGone) }

func testRequestThatIsGone(t *testing.T) {
	w := newCertificateWorld(t, 3600)
	if _, err := w.cache.PodCertificate(t.Context(), w.source); !errors.Is(err, errNotIssued) {
		t.Fatalf("error %v", err)
	}
	if err := w.client.Tracker().Delete(requestResource, "ns", "req-1"); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if _, err := w.cache.PodCertificate(t.Context(), w.source); err == nil || !strings.Contains(err.Error(), "PodCertificateRequest ns/req-1 is gone") {
		t.Errorf("error %v", err)
	}
	w.first()
	w.get(2)
}

func TestRenewalThatIsLate(t *testing.T) { synctest.Test(t, testRenewalThatIsLate) }

func testRenewalThatIsLate(t *testing.T) {
	w := newCertificateWorld(t, 7200)
	w.first()
	w.get(1)
	w.down = errors.New("API server is down")
	for range 5 { // looked at whenever the pod is told
		time.Sleep(30 * time.Minute)
		if told := toldNow(w.told); len(told) > 0 {
			w.get(1)
		}
	}
	const want = "CertificateOverdueForRefresh: PodCertificate refresh overdue; CertificateExpired: PodCertificate expired"
	if got := strings.Join(w.warned, "; "); got != want {
		t.Errorf("events %s", got)
	}
	w.down = nil
	time.Sleep(tokenRetry)
	if told := toldNow(w.told); len(told) != 1 {
		t.Errorf("told %v", told)
	}
	w.get(1)
	w.issue()
	w.get(2)
}

func TestKeysOfPods(t *testing.T) {
	cache := certificateCache{}
	cache.init(nil)
	digest := sha256.Sum256([]byte("uid"))
	for kind, bits := range map[string]int{"RSA3072": 3072, "RSA4096": 4096, "ECDSAP256": 256, "ECDSAP384": 384, "ECDSAP521": 521, "ED25519": 0} {
		key, err := cache.newKey(t.Context(), kind)
		if err != nil {
			t.Fatal(err)
		}
		proof, err := key.prove("uid")
		if err != nil {
			t.Fatal(err)
		}
		public, err := x509.ParsePKIXPublicKey(key.public)
		if err != nil {
			t.Fatal(err)
		}
		var good bool
		switch public := public.(type) {
		case *rsa.PublicKey:
			good = public.N.BitLen() == bits && rsa.VerifyPSS(public, crypto.SHA256, digest[:], proof, nil) == nil
		case *ecdsa.PublicKey:
			good = public.Curve.Params().BitSize == bits && ecdsa.VerifyASN1(public, digest[:], proof)
		case ed25519.PublicKey:
			good = bits == 0 && ed25519.Verify(public, []byte("uid"), proof)
		}
		if !good || !bytes.Equal(publicOf(t, key.pem), key.public) {
			t.Errorf("%s: the key, or its proof, is wrong", kind)
		}
	}
	if _, err := cache.newKey(t.Context(), "DSA"); err == nil || !strings.Contains(err.Error(), `"DSA"`) {
		t.Errorf("error %v", err)
	}
}

func FuzzCleanChain(f *testing.F) {
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"a": "b"}, Bytes: []byte("leaf")})
	f.Add(block)
	f.Add(append([]byte("before\n"), block...))
	f.Add([]byte("-----BEGIN "))
	f.Fuzz(func(t *testing.T, chain []byte) {
		clean := cleanChain(chain)
		if !bytes.Equal(cleanChain(clean), clean) {
			t.Errorf("%q is not clean", clean)
		}
	})
}
