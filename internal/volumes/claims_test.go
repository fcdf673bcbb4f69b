package volumes

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// fakeClaims is the API's side of claims.
type fakeClaims struct {
	mu     sync.Mutex
	claims map[string]*corev1.PersistentVolumeClaim
	pvs    map[string]*corev1.PersistentVolume
	asked  int
}

func (f *fakeClaims) Claim(_ context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	if c := f.claims[namespace+"/"+name]; c != nil {
		return c.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolumeclaims"}, name)
}

func (f *fakeClaims) PersistentVolume(_ context.Context, name string) (*corev1.PersistentVolume, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if pv := f.pvs[name]; pv != nil {
		return pv.DeepCopy(), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "persistentvolumes"}, name)
}

func (f *fakeClaims) Grown(_ context.Context, claim *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.claims[claim.Namespace+"/"+claim.Name]
	now.Status.Capacity = corev1.ResourceList{corev1.ResourceStorage: size}
	now.Status.AllocatedResourceStatuses = nil
	return nil
}

// bind makes a claim shop/<name> that is bound to a volume pv-<name> of the source.
func (f *fakeClaims) bind(name string, src corev1.PersistentVolumeSource, change ...func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: "claim-1"},
		Spec:       corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name},
		Status:     corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound},
	}
	pv := &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name},
		Spec:       corev1.PersistentVolumeSpec{PersistentVolumeSource: src, ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: name, UID: "claim-1"}},
	}
	for _, c := range change {
		c(claim, pv)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.claims["shop/"+name], f.pvs[pv.Name] = claim, pv
}

func claimsManager(t *testing.T) (*Manager, *fakeClaims) {
	t.Helper()
	m, _ := testManager(t)
	m.opts.Layout.Kubelet = t.TempDir()
	claims := &fakeClaims{claims: map[string]*corev1.PersistentVolumeClaim{}, pvs: map[string]*corev1.PersistentVolume{}}
	m.opts.Claims = claims
	return m, claims
}

func claimVolume(name, claim string) corev1.Volume {
	return vol(name, corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim}})
}

func local(path string) corev1.PersistentVolumeSource {
	return corev1.PersistentVolumeSource{Local: &corev1.LocalVolumeSource{Path: path}}
}

func TestClaimOfALocalDirectory(t *testing.T) {
	m, claims := claimsManager(t)
	dir := t.TempDir()
	claims.bind("data", local(dir), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
		pv.Spec.MountOptions = []string{"noexec"}
	})
	pod := testPod(claimVolume("d", "data"))
	pod.Spec.Volumes[0].PersistentVolumeClaim.ReadOnly = true
	got := prepare(t, m, pod, PodInfo{})["d"]
	if want := (Mounted{Path: dir, Readonly: true, NoExec: true}); got != want {
		t.Errorf("mounted %+v, want %+v", got, want)
	}
	// Once it was found nothing is asked: containers start again without the API.
	asked := claims.asked
	delete(claims.claims, "shop/data")
	if again := prepare(t, m, pod, PodInfo{})["d"]; again != got || claims.asked != asked {
		t.Errorf("the second time: %+v, asked %d times more", again, claims.asked-asked)
	}
	wantInUse(t, m, "pv-data", true)
	if err := os.WriteFile(filepath.Join(dir, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kept")); err != nil {
		t.Error("the pod's end took data of its claim:", err)
	}
	wantInUse(t, m, "pv-data", false)
}

func wantInUse(t *testing.T, m *Manager, pv string, want bool) {
	t.Helper()
	if used, err := m.usedByOthers(pv, "somebody else"); err != nil || used != want {
		t.Errorf("%s in use: %v %v, want %v", pv, used, err, want)
	}
}

// The texts are a kubelet's: people and tests look for them.
func TestClaimsThatCannotBeUsed(t *testing.T) {
	m, claims := claimsManager(t)
	dir := t.TempDir()
	type change = func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume)
	m.opts.Node = func() *corev1.Node {
		return &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"host": "a"}}}
	}
	for name, c := range map[string]struct {
		src    corev1.PersistentVolumeSource
		change change
		want   string
	}{
		"pending": {local(dir), func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.Status.Phase = corev1.ClaimPending
		}, "failed to process volumes=[v]: error processing PVC shop/pending: PVC is not bound"},
		"deleted": {local(dir), func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
			c.DeletionTimestamp = &metav1.Time{}
		}, "PVC is being deleted"},
		"stolen":  {local(dir), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Spec.ClaimRef.UID = "other" }, "does not point to claim.UID claim-1"},
		"lost":    {local(dir), func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) { c.Spec.VolumeName = "none" }, "failed to fetch PV none from API server"},
		"missing": {local("/nonexistent/x"), nil, `MountVolume.NewMounter initialization failed for volume "pv-missing" : path "/nonexistent/x" does not exist`},
		"options": {local(dir), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.MountOptions = []string{"discard"}
		}, `spec.mountOptions "discard"`},
		"affinity": {local(dir), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) { pv.Spec.NodeAffinity = onlyOn("b") }, `MountVolume.NodeAffinity check failed for volume "pv-affinity"`},
		"iscsi":    {corev1.PersistentVolumeSource{ISCSI: &corev1.ISCSIPersistentVolumeSource{}}, nil, "spec.iscsi"},
		"block": {local(dir), func(_ *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume) {
			pv.Spec.VolumeMode = ptr(corev1.PersistentVolumeBlock)
		}, "volume v has volumeMode Block, but is specified in volumeMounts"},
	} {
		t.Run(name, func(t *testing.T) {
			if c.change == nil {
				c.change = func(*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {}
			}
			claims.bind(name, c.src, c.change)
			pod := testPod(claimVolume("v", name))
			pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v"}}
			_, err := m.Prepare(t.Context(), pod, PodInfo{})
			var located *Error
			if !errors.As(err, &located) || located.Field != "spec.volumes[0].persistentVolumeClaim" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
			if err := m.Remove(t.Context(), testUID); err != nil {
				t.Error(err)
			}
		})
	}
}

func onlyOn(host string) *corev1.VolumeNodeAffinity {
	return &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
		MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "host", Operator: corev1.NodeSelectorOpIn, Values: []string{host}}},
	}}}}
}

func TestEphemeralVolumeMustBeThePods(t *testing.T) {
	m, claims := claimsManager(t)
	pod := testPod(vol("scratch", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}))
	claims.bind("web-scratch", local(t.TempDir()))
	if _, err := m.Prepare(t.Context(), pod, PodInfo{}); err == nil || !strings.Contains(err.Error(), "not created for pod") {
		t.Errorf("somebody else's claim: %v", err)
	}
	claims.bind("web-scratch", local(t.TempDir()), func(c *corev1.PersistentVolumeClaim, _ *corev1.PersistentVolume) {
		c.OwnerReferences = []metav1.OwnerReference{{Kind: "Pod", Name: "web", UID: testUID, Controller: ptr(true)}}
	})
	prepare(t, m, pod, PodInfo{})
}

// fsGroup goes to everything in the volume and follows nothing out of it.
func TestGroupOfALocalVolume(t *testing.T) {
	m, claims := claimsManager(t)
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(outside, nil, 0o600))
	must(os.Mkdir(filepath.Join(dir, "sub"), 0o700))
	must(os.WriteFile(filepath.Join(dir, "sub", "file"), nil, 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "link")))
	claims.bind("data", local(dir))
	pod := testPod(claimVolume("d", "data"))
	prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})
	wantOwner(t, dir, 4321, 0o770|unix.S_ISGID)
	wantOwner(t, filepath.Join(dir, "sub"), 4321, 0o770|unix.S_ISGID)
	wantOwner(t, filepath.Join(dir, "sub", "file"), 4321, 0o660)
	wantOwner(t, outside, 0, 0o600)

	// What containers do afterwards stays, and so does the group under a second pod.
	must(os.Chmod(filepath.Join(dir, "sub", "file"), 0o600))
	prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})
	other := testPod(claimVolume("d", "data"))
	other.UID = "99999999-2222-3333-4444-555555555555"
	prepare(t, m, other, PodInfo{FSGroup: ptr(int64(5555))})
	wantOwner(t, filepath.Join(dir, "sub", "file"), 4321, 0o600)

	must(m.Remove(t.Context(), testUID))
	must(m.Remove(t.Context(), string(other.UID)))
	third := testPod(claimVolume("d", "data"))
	prepare(t, m, third, PodInfo{FSGroup: ptr(int64(5555))})
	wantOwner(t, filepath.Join(dir, "sub", "file"), 5555, 0o660)
}

func wantOwner(t *testing.T, path string, group uint32, mode uint32) {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	if st.Gid != group || st.Mode&0o7777&mode != mode || mode == 0o600 && st.Mode&0o777 != 0o600 {
		t.Errorf("%s: group %d mode %o, want %d %o", path, st.Gid, st.Mode&0o7777, group, mode)
	}
}

// TestFSGroupChangePolicy: what is below a top that is the group's already stays as it is, if the
// pod wants it so.
func TestFSGroupChangePolicy(t *testing.T) {
	for _, c := range []struct {
		policy   corev1.PodFSGroupChangePolicy
		topIs    int
		wantFile uint32
	}{
		{"", 4321, 4321},
		{corev1.FSGroupChangeAlways, 4321, 4321},
		{corev1.FSGroupChangeOnRootMismatch, 4321, 0},
		{corev1.FSGroupChangeOnRootMismatch, 0, 4321},
	} {
		m, claims := claimsManager(t)
		dir := t.TempDir()
		file := filepath.Join(dir, "file")
		err := errors.Join(os.WriteFile(file, nil, 0o600), os.Lchown(dir, 0, c.topIs), unix.Chmod(dir, 0o770|unix.S_ISGID))
		if err != nil {
			t.Fatal(err)
		}
		claims.bind("data", local(dir))
		pod := testPod(claimVolume("d", "data"))
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroupChangePolicy: &c.policy}
		prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(4321))})
		var st unix.Stat_t
		if err := unix.Stat(file, &st); err != nil || st.Gid != c.wantFile {
			t.Errorf("%+v: the file is group %d's (%v)", c, st.Gid, err)
		}
		if err := m.Remove(t.Context(), testUID); err != nil {
			t.Fatal(err)
		}
	}
}
