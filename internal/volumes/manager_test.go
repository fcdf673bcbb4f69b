package volumes

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// fakeSource holds objects in maps; it behaves like a source whose watches have answered.
type fakeSource struct {
	mu      sync.Mutex
	cms     map[string]*corev1.ConfigMap
	secrets map[string]*corev1.Secret
	token   string
	bundles []string
	cert    objects.Credential
	asked   []objects.CertificateSource
	err     error
}

func (f *fakeSource) Register(*corev1.Pod)  {}
func (f *fakeSource) Unregister(string)     {}
func (f *fakeSource) OnChange(func(string)) {}

func (f *fakeSource) ConfigMap(_ context.Context, _, name string) (*corev1.ConfigMap, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	if cm := f.cms[name]; cm != nil {
		return cm, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "configmaps"}, name)
}

func (f *fakeSource) Secret(_ context.Context, _, name string) (*corev1.Secret, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return nil, f.err
	}
	if s := f.secrets[name]; s != nil {
		return s, nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "secrets"}, name)
}

func (f *fakeSource) Token(_ context.Context, _ *corev1.Pod, audience string, seconds int64) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return fmt.Sprintf("%s/%s/%d", f.token, audience, seconds), f.err
}

func (f *fakeSource) TrustBundles(context.Context, *corev1.ClusterTrustBundleProjection) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bundles, f.err
}

func (f *fakeSource) PodCertificate(_ context.Context, s objects.CertificateSource) (objects.Credential, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, s)
	return f.cert, f.err
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("VK_METAL_REQUIRE") == "all" {
		t.Fatal("needs root")
	}
	t.Skip("needs root")
}

func testManager(t *testing.T) (*Manager, *fakeSource) {
	t.Helper()
	needRoot(t)
	run, err := os.MkdirTemp("/dev/shm", "vkm-volumes-")
	if err != nil {
		t.Fatal(err)
	}
	src := &fakeSource{cms: map[string]*corev1.ConfigMap{}, secrets: map[string]*corev1.Secret{}, token: "tok"}
	m, err := NewManager(Options{
		Layout:  paths.Layout{Run: run, Lib: t.TempDir()},
		Objects: src, TrustBundles: src, Certificates: src,
		Logger: slog.New(slog.DiscardHandler),
		NodeAllocatable: func() corev1.ResourceList {
			return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("64Mi"), corev1.ResourceCPU: resource.MustParse("2")}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		uids, _ := m.List(context.Background())
		for _, uid := range uids {
			if err := m.Remove(context.Background(), uid); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(run); err != nil {
			t.Error(err)
		}
	})
	return m, src
}

const testUID = "11111111-2222-3333-4444-555555555555"

// testPod has volumes of which all are mounted, by a container that has nothing else.
func testPod(volumes ...corev1.Volume) *corev1.Pod {
	mounts := corev1.EphemeralContainer{}
	for _, v := range volumes {
		mounts.VolumeMounts = append(mounts.VolumeMounts, corev1.VolumeMount{Name: v.Name})
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: testUID, Labels: map[string]string{"app": "web", "tier": `a"b`}},
		Spec:       corev1.PodSpec{Volumes: volumes, Containers: []corev1.Container{{Name: "c"}}, EphemeralContainers: []corev1.EphemeralContainer{mounts}},
	}
}

func vol(name string, src corev1.VolumeSource) corev1.Volume {
	return corev1.Volume{Name: name, VolumeSource: src}
}

func ptr[T any](v T) *T { return &v }

func configMapVolume(name, cm string, items ...corev1.KeyToPath) corev1.Volume {
	return vol(name, corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
		LocalObjectReference: corev1.LocalObjectReference{Name: cm}, Items: items, DefaultMode: ptr(int32(0o644)),
	}})
}

func secretVolume(name, secret string) corev1.Volume {
	return vol(name, corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: secret, DefaultMode: ptr(int32(0o400))}})
}

func prepare(t *testing.T, m *Manager, pod *corev1.Pod, info PodInfo) map[string]Mounted {
	t.Helper()
	got, err := m.Prepare(t.Context(), pod, info)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func wantFile(t *testing.T, path, body string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil || string(data) != body {
		t.Errorf("%s: %q %v, want %q", path, data, err, body)
	}
}

func wantMode(t *testing.T, path string, mode uint32, uid, gid uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&0o7777 != mode || st.Uid != uid || st.Gid != gid {
		t.Errorf("%s: %o %d:%d, want %o %d:%d", path, st.Mode&0o7777, st.Uid, st.Gid, mode, uid, gid)
	}
}

func TestConfigMapLifecycle(t *testing.T) {
	m, src := testManager(t)
	src.cms["cfg"] = &corev1.ConfigMap{Data: map[string]string{"a": "1", "b": "2"}, BinaryData: map[string][]byte{"bin": {0, 1}}}
	pod := testPod(configMapVolume("v", "cfg"))
	pod.Spec.Volumes[0].ConfigMap.DefaultMode = ptr(int32(0o604))
	got := prepare(t, m, pod, PodInfo{})["v"]
	wantMode(t, filepath.Join(got.Path, "b"), 0o604, 0, 0)
	if !got.Readonly || got.File {
		t.Errorf("mounted %+v", got)
	}
	wantFile(t, filepath.Join(got.Path, "a"), "1")
	wantFile(t, filepath.Join(got.Path, "bin"), "\x00\x01")
	wantMode(t, filepath.Join(got.Path, "a"), 0o604, 0, 0)
	version, err := os.Readlink(filepath.Join(got.Path, dataLink))
	if err != nil {
		t.Fatal(err)
	}

	// Unchanged content is not written again.
	if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
		t.Fatal(err)
	}
	if v, _ := os.Readlink(filepath.Join(got.Path, dataLink)); v != version {
		t.Errorf("..data moved from %s to %s", version, v)
	}

	src.cms["cfg"] = &corev1.ConfigMap{Data: map[string]string{"a": "one", "c": "3"}}
	if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(got.Path, "a"), "one")
	var names []string
	entries, _ := os.ReadDir(got.Path)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	current, _ := os.Readlink(filepath.Join(got.Path, dataLink))
	want := []string{current, dataLink, "a", "c"}
	slices.Sort(want)
	if !slices.Equal(names, want) {
		t.Errorf("volume holds %q, want %q", names, want)
	}

	// The object goes away: containers keep what they have, Update says why.
	delete(src.cms, "cfg")
	err = m.Update(t.Context(), pod, PodInfo{})
	var e *Error
	if !errors.As(err, &e) || !e.NotFound || e.Volume != "v" || e.Field != "spec.volumes[0].configMap" {
		t.Errorf("error %#v", err)
	}
	prepare(t, m, pod, PodInfo{})
	wantFile(t, filepath.Join(got.Path, "a"), "one")
}

func TestMissingObjects(t *testing.T) {
	m, src := testManager(t)
	pod := testPod(configMapVolume("v", "nope"), secretVolume("s", "nope"))
	_, err := m.Prepare(t.Context(), pod, PodInfo{})
	var e *Error
	if !errors.As(err, &e) || !e.NotFound {
		t.Fatalf("error %v", err)
	}
	if want := `MountVolume.SetUp failed for volume "v" : configmaps "nope" not found`; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q, want %q", err, want)
	}
	pod.Spec.Volumes[0].ConfigMap.Optional = ptr(true)
	pod.Spec.Volumes[1].Secret.Optional = ptr(true)
	got := prepare(t, m, pod, PodInfo{})
	src.cms["nope"] = &corev1.ConfigMap{Data: map[string]string{"late": "yes"}}
	if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(got["v"].Path, "late"), "yes")
}

func TestSecretOnMemoryWithFSGroup(t *testing.T) {
	m, src := testManager(t)
	src.secrets["s"] = &corev1.Secret{Data: map[string][]byte{"key": []byte("hidden")}}
	got := prepare(t, m, testPod(secretVolume("v", "s")), PodInfo{FSGroup: ptr(int64(2000))})["v"]
	if ok, err := onMemory(got.Path); !ok || err != nil {
		t.Errorf("secret is not on a tmpfs: %v", err)
	}
	wantFile(t, filepath.Join(got.Path, "key"), "hidden")
	wantMode(t, filepath.Join(got.Path, "key"), 0o440, 0, 2000)
	wantMode(t, filepath.Join(got.Path, dataLink), 0o2755, 0, 2000)
	wantMode(t, got.Path, 0o2777, 0, 2000)
}

func TestEmptyDir(t *testing.T) {
	m, _ := testManager(t)
	pod := testPod(
		vol("disk", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("mem", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory, SizeLimit: ptr(resource.MustParse("1Mi"))}}),
	)
	got := prepare(t, m, pod, PodInfo{})
	wantMode(t, got["disk"].Path, 0o777, 0, 0)
	wantMode(t, got["mem"].Path, 0o1777, 0, 0)
	for _, v := range got {
		if err := os.WriteFile(filepath.Join(v.Path, "mine"), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(got["mem"].Path, "big"), make([]byte, 2<<20), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("2 MiB into 1 MiB: %v", err)
	}
	// Again, as after an agent restart: nothing is lost.
	for name, v := range prepare(t, m, pod, PodInfo{}) {
		if v != got[name] {
			t.Errorf("%s moved", name)
		}
		wantFile(t, filepath.Join(v.Path, "mine"), "x")
	}
	if uids, err := m.List(t.Context()); err != nil || !slices.Equal(uids, []string{testUID}) {
		t.Errorf("List: %v %v", uids, err)
	}
	for range 2 {
		if err := m.Remove(t.Context(), testUID); err != nil {
			t.Fatal(err)
		}
	}
	if uids, err := m.List(t.Context()); err != nil || len(uids) > 0 {
		t.Errorf("List after Remove: %v %v", uids, err)
	}
}
