package objects

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/testapi"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func podWith(uid string, configMaps ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "pod-" + uid, Namespace: "ns", UID: types.UID(uid)}}
	for _, name := range configMaps {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}},
		}})
	}
	return p
}

func configMap(name, value string) *corev1.ConfigMap {
	return &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", UID: "1", ResourceVersion: value}, Data: map[string]string{"k": value}}
}

// testSource is a Cache over a fake API, and the pods that it told about.
func testSource(t *testing.T, objects ...runtime.Object) (*Cache, *fake.Clientset, chan string) {
	t.Helper()
	client := testapi.NewClientset(objects...)
	ctx, cancel := context.WithCancel(t.Context())
	c := NewSource(ctx, client, Options{FirstAnswer: 5 * time.Second})
	t.Cleanup(func() { cancel(); c.Wait() })
	told := make(chan string, 100)
	c.OnChange(func(uid string) { told <- uid })
	return c, client, told
}

func wantTold(t *testing.T, told chan string, uids ...string) {
	t.Helper()
	left := map[string]bool{}
	for _, u := range uids {
		left[u] = true
	}
	timeout := time.After(5 * time.Second)
	for len(left) > 0 {
		select {
		case u := <-told:
			delete(left, u)
		case <-timeout:
			t.Fatalf("not told about %v", left)
		}
	}
}

func watches(client *fake.Clientset) int {
	n := 0
	for _, a := range client.Actions() {
		if w, ok := a.(clienttesting.WatchAction); ok && strings.HasPrefix(w.GetWatchRestrictions().Fields.String(), "metadata.name=") {
			n++
		}
	}
	return n
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("timed out: %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func TestWatchAndFanOut(t *testing.T) { synctest.Test(t, testWatchAndFanOut) }

func testWatchAndFanOut(t *testing.T) {
	c, client, told := testSource(t, configMap("a", "1"))
	c.Register(podWith("p1", "a", "b"))
	c.Register(podWith("p2", "a"))
	got, err := c.ConfigMap(t.Context(), "ns", "a")
	if err != nil || got.Data["k"] != "1" {
		t.Fatalf("a: %+v %v", got, err)
	}
	if _, err := c.ConfigMap(t.Context(), "ns", "b"); !apierrors.IsNotFound(err) {
		t.Errorf("b: %v, want NotFound", err)
	}
	eventually(t, "two watches", func() bool { return watches(client) == 2 })
	drain(told)
	if _, err := client.CoreV1().ConfigMaps("ns").Update(t.Context(), configMap("a", "2"), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantTold(t, told, "p1", "p2")
	eventually(t, "a is 2", func() bool {
		got, err := c.ConfigMap(t.Context(), "ns", "a")
		return err == nil && got.Data["k"] == "2"
	})
	// A missing object appears.
	if _, err := client.CoreV1().ConfigMaps("ns").Create(t.Context(), configMap("b", "1"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	wantTold(t, told, "p1")
	// p2's new version of itself drops a and takes b; p1 goes away.
	c.Register(podWith("p2", "b"))
	c.Unregister("p1")
	c.mu.Lock()
	left := slices.Collect(maps.Keys(c.objects))
	c.mu.Unlock()
	if len(left) != 1 || left[0].name != "b" {
		t.Errorf("watched %v, want b", left)
	}
	if err := client.CoreV1().ConfigMaps("ns").Delete(t.Context(), "b", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	wantTold(t, told, "p2")
	eventually(t, "b is gone", func() bool {
		_, err := c.ConfigMap(t.Context(), "ns", "b")
		return apierrors.IsNotFound(err)
	})
	// What no pod refers to is read once.
	if got, err := c.ConfigMap(t.Context(), "ns", "a"); err != nil || got.Data["k"] != "2" {
		t.Errorf("unwatched a: %+v %v", got, err)
	}
}

func drain(told chan string) {
	for {
		select {
		case <-told:
		default:
			return
		}
	}
}

func TestImmutableEndsItsWatch(t *testing.T) { synctest.Test(t, testImmutableEndsItsWatch) }

func testImmutableEndsItsWatch(t *testing.T) {
	immutable := true
	cm := configMap("a", "1")
	cm.Immutable = &immutable
	c, _, _ := testSource(t, cm)
	c.Register(podWith("p", "a"))
	if _, err := c.ConfigMap(t.Context(), "ns", "a"); err != nil {
		t.Fatal(err)
	}
	c.Wait() // the only watch ends although the source lives
	if got, err := c.ConfigMap(t.Context(), "ns", "a"); err != nil || got.Data["k"] != "1" {
		t.Errorf("after the watch: %+v %v", got, err)
	}
}

func TestNoAnswer(t *testing.T) { synctest.Test(t, testNoAnswer) }

func testNoAnswer(t *testing.T) {
	client := testapi.NewClientset()
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(corev1.Resource("secrets"), "s", errors.New("no relationship found"))
	})
	client.PrependWatchReactor("secrets", clienttesting.DefaultWatchReactor(nil, errors.New("no relationship found")))
	ctx, cancel := context.WithCancel(t.Context())
	c := NewSource(ctx, client, Options{FirstAnswer: 300 * time.Millisecond})
	defer func() { cancel(); c.Wait() }()
	pod := podWith("p")
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "s"}}
	c.Register(pod)
	_, err := c.Secret(t.Context(), "ns", "s")
	if err == nil || !strings.Contains(err.Error(), "no answer from the API server in 300ms") || !strings.Contains(err.Error(), "no relationship found") {
		t.Errorf("error %v", err)
	}
}

func TestRefs(t *testing.T) {
	env := func(n int) []corev1.EnvVar {
		return []corev1.EnvVar{
			{Name: "A", ValueFrom: &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("cm%d", n)}}}},
			{Name: "B", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("s%d", n)}}}},
			{Name: "C", ValueFrom: &corev1.EnvVarSource{}},
			{Name: "D", Value: "x"},
		}
	}
	from := func(n int) []corev1.EnvFromSource {
		return []corev1.EnvFromSource{
			{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("cmf%d", n)}}},
			{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: fmt.Sprintf("sf%d", n)}}},
		}
	}
	pod := podWith("p", "volcm")
	pod.Spec.InitContainers = []corev1.Container{{Env: env(1), EnvFrom: from(1)}}
	pod.Spec.Containers = []corev1.Container{{Env: env(2), EnvFrom: from(2)}}
	pod.Spec.EphemeralContainers = []corev1.EphemeralContainer{{EphemeralContainerCommon: corev1.EphemeralContainerCommon{Env: env(3), EnvFrom: from(3)}}}
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "pull"}, {}}
	pod.Spec.Volumes = append(pod.Spec.Volumes,
		corev1.Volume{VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "vols"}}},
		corev1.Volume{VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "pcm"}}},
			{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "ps"}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{}},
			{ClusterTrustBundle: named("b")},
			{ClusterTrustBundle: signedBy("s/x", nil)},
			{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{}},
			{PodCertificate: &corev1.PodCertificateProjection{}},
		}}}},
		corev1.Volume{VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
	)
	var got []string
	for k := range podRefs(pod) {
		got = append(got, k.kind[:1]+":"+k.name)
	}
	slices.Sort(got)
	want := strings.Fields("C:b C:cm1 C:cm2 C:cm3 C:cmf1 C:cmf2 C:cmf3 C:pcm C:s/x C:volcm P: S:ps S:pull S:s1 S:s2 S:s3 S:sf1 S:sf2 S:sf3 S:vols")
	if !slices.Equal(got, want) {
		t.Errorf("refs %v, want %v", got, want)
	}
}

// tokenAPI answers token requests with a counter and the given life.
func tokenAPI(client *fake.Clientset, life *time.Duration, fail *bool) *[]*authv1.TokenRequest {
	var asked []*authv1.TokenRequest
	client.PrependReactor("create", "serviceaccounts", func(a clienttesting.Action) (bool, runtime.Object, error) {
		create, ok := a.(clienttesting.CreateAction)
		if !ok || a.GetSubresource() != "token" {
			return false, nil, nil
		}
		if *fail {
			return true, nil, errors.New("API server is down")
		}
		req := create.GetObject().(*authv1.TokenRequest).DeepCopy()
		asked = append(asked, req)
		req.Status.Token = fmt.Sprintf("token-%d", len(asked))
		req.Status.ExpirationTimestamp = metav1.NewTime(time.Now().Add(*life))
		return true, req, nil
	})
	return &asked
}

func TestTokens(t *testing.T) { synctest.Test(t, testTokens) }

func testTokens(t *testing.T) {
	c, client, told := testSource(t)
	life, fail := time.Hour, false
	asked := tokenAPI(client, &life, &fail)
	pod := podWith("p")
	pod.Spec.ServiceAccountName = "robot"
	get := func(audience string) string {
		t.Helper()
		tok, err := c.Token(t.Context(), pod, audience, 3600)
		if err != nil {
			t.Fatal(err)
		}
		return tok
	}
	if a, b, other := get("x"), get("x"), get("y"); a != b || a == other {
		t.Errorf("tokens %s %s %s", a, b, other)
	}
	first := (*asked)[0].Spec
	if first.BoundObjectRef.UID != "p" || first.BoundObjectRef.Name != "pod-p" || first.Audiences[0] != "x" || *first.ExpirationSeconds != 3600 {
		t.Errorf("request %+v", first)
	}
	// A token that is due is renewed, and the pod is told when it is due.
	life = 50 * time.Millisecond
	short := get("short")
	wantTold(t, told, "p")
	life = time.Hour
	if renewed := get("short"); renewed == short {
		t.Error("not renewed")
	}
	// While the API server is down the old one is used until it expires.
	life = 2 * time.Second
	old := get("down")
	wantTold(t, told, "p")
	fail = true
	if got := get("down"); got != old {
		t.Errorf("token %s, want the old %s", got, old)
	}
	if _, err := c.Token(t.Context(), pod, "new", 3600); err == nil {
		t.Error("no error without a token")
	}
	c.Unregister("p")
	if _, ok := c.tokens.get(tokenKey{"p", "x", 3600}); ok {
		t.Error("tokens outlive their pod")
	}
}

func TestRefreshAt(t *testing.T) {
	issued := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	for _, c := range []struct{ life, jitter, want time.Duration }{
		{time.Hour, 0, 48 * time.Minute},
		{time.Hour, 10 * time.Second, 48*time.Minute - 10*time.Second},
		{10 * time.Minute, 0, 8 * time.Minute},
		{100 * 24 * time.Hour, 0, 24 * time.Hour},
		{10 * time.Second, 10 * time.Second, 7 * time.Second},
	} {
		if got := refreshAt(issued, issued.Add(c.life), c.jitter).Sub(issued); got != c.want {
			t.Errorf("life %v jitter %v: %v, want %v", c.life, c.jitter, got, c.want)
		}
	}
}
