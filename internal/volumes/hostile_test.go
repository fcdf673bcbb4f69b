package volumes

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestCheckPath(t *testing.T) {
	for p, ok := range map[string]bool{
		"a": true, "a/b": true, ".a": true, "a..b": true, "a/..b": true, "...": false, "..": false, "../a": false, "a/../b": false,
		"/a": false, "": false, ".": false, "..data": false, "..2026": false, "a\x00b": false, "./..data": false,
		strings.Repeat("x", 256): false, strings.Repeat("x/", 3000): false,
	} {
		if err := checkPath(p); (err == nil) != ok {
			t.Errorf("checkPath(%q) = %v, want ok %v", p, err, ok)
		}
	}
}

func FuzzCheckPath(f *testing.F) {
	for _, s := range []string{"a", "..", "a/..", "./..data", "/", "a//b", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, p string) {
		if checkPath(p) == nil && (!filepath.IsLocal(p) || strings.HasPrefix(filepath.Clean(p), "..")) {
			t.Errorf("%q passed", p)
		}
	})
}

// TestHostileKeys feeds keys and paths that an API server would refuse, one at a time.
func TestHostileKeys(t *testing.T) {
	m, src := testManager(t)
	for _, key := range []string{"..", "../up", "/abs", "..data", "a/../../up", "nul\x00", "..data/x"} {
		src.cms["bad"] = &corev1.ConfigMap{Data: map[string]string{key: "evil"}}
		if _, err := m.Prepare(t.Context(), testPod(configMapVolume("k", "bad")), PodInfo{}); err == nil {
			t.Errorf("key %q was taken", key)
		}
		src.cms["good"] = &corev1.ConfigMap{Data: map[string]string{"a": "evil"}}
		_, err := m.Prepare(t.Context(), testPod(configMapVolume("p", "good", corev1.KeyToPath{Key: "a", Path: key})), PodInfo{})
		if err == nil {
			t.Errorf("path %q was taken", key)
		}
	}
	for _, name := range []string{"..", "a/b", "", "a\x00b"} {
		if _, err := m.Prepare(t.Context(), testPod(vol(name, corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})), PodInfo{}); err == nil {
			t.Errorf("volume name %q was taken", name)
		}
	}
	pod := testPod()
	for _, uid := range []string{"..", "a/b", ""} {
		pod.UID = "x"
		if err := m.Remove(t.Context(), uid); err == nil {
			t.Errorf("pod UID %q was taken", uid)
		}
	}
}

// TestTamperedVolume lets a container (one that may remount) redirect the writer's own links.
func TestTamperedVolume(t *testing.T) {
	m, src := testManager(t)
	src.cms["cfg"] = &corev1.ConfigMap{Data: map[string]string{"secret": "1"}}
	pod := testPod(configMapVolume("v", "cfg"))
	got := prepare(t, m, pod, PodInfo{})["v"]
	outside := t.TempDir()
	keep := filepath.Join(outside, "secret")
	if err := os.WriteFile(keep, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, link := range []string{dataLink, newDataLink, "secret", "..2020_01_01_00_00_00.000000001"} {
		p := filepath.Join(got.Path, link)
		if err := os.RemoveAll(p); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(outside, p); err != nil {
			t.Fatal(err)
		}
	}
	src.cms["cfg"] = &corev1.ConfigMap{Data: map[string]string{"secret": "2"}}
	if err := m.Update(t.Context(), pod, PodInfo{FSGroup: ptr(int64(7))}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(got.Path, "secret"), "2")
	wantFile(t, keep, "keep")
	wantMode(t, keep, 0o600, 0, 0)
	wantMode(t, outside, 0o755, 0, 0)
}

func TestRemoveStaysInside(t *testing.T) {
	m, _ := testManager(t)
	got := prepare(t, m, testPod(vol("e", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})), PodInfo{})["e"]
	outside := t.TempDir()
	keep := filepath.Join(outside, "keep")
	if err := os.WriteFile(keep, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, target := range map[string]string{"dir": outside, "file": keep, "loop": "."} {
		if err := os.Symlink(target, filepath.Join(got.Path, name)); err != nil {
			t.Fatal(err)
		}
	}
	mount := filepath.Join(got.Path, "mounted")
	if err := os.Mkdir(mount, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount(outside, mount, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	err := m.Remove(t.Context(), testUID)
	if err == nil || !strings.Contains(err.Error(), "still mounted") {
		t.Errorf("removal with a mount inside: %v", err)
	}
	wantFile(t, keep, "keep")
	if err := unix.Unmount(mount, unix.MNT_DETACH); err != nil {
		t.Fatal(err)
	}
	if err := m.Remove(t.Context(), testUID); err != nil {
		t.Fatal(err)
	}
	wantFile(t, keep, "keep")
}

// TestRemoveDeep removes 3000 nested directories with few file descriptors.
func TestRemoveDeep(t *testing.T) {
	m, _ := testManager(t)
	got := prepare(t, m, testPod(vol("e", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}})), PodInfo{})["e"]
	fd, err := unix.Open(got.Path, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3000 {
		if err := unix.Mkdirat(fd, "d", 0o700); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = 256
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &low); err != nil {
		t.Fatal(err)
	}
	err = m.Remove(t.Context(), testUID)
	if e := unix.Setrlimit(unix.RLIMIT_NOFILE, &old); e != nil {
		t.Fatal(e)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestHostPath(t *testing.T) {
	m, _ := testManager(t)
	d := t.TempDir()
	regular := filepath.Join(d, "file")
	if err := os.WriteFile(regular, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	sock := filepath.Join(d, "s")
	l, err := net.Listen("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	block := filepath.Join(d, "blk")
	if err := unix.Mknod(block, unix.S_IFBLK|0o600, int(unix.Mkdev(7, 99))); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		path string
		kind corev1.HostPathType
		file bool
		err  string
	}{
		{d, corev1.HostPathUnset, false, ""},
		{regular, corev1.HostPathUnset, true, ""},
		{filepath.Join(d, "made"), corev1.HostPathUnset, false, ""},
		{filepath.Join(d, "x/y"), corev1.HostPathDirectoryOrCreate, false, ""},
		{filepath.Join(d, "new"), corev1.HostPathFileOrCreate, true, ""},
		{regular, corev1.HostPathFile, true, ""},
		{sock, corev1.HostPathSocket, true, ""},
		{"/dev/null", corev1.HostPathCharDev, true, ""},
		{block, corev1.HostPathBlockDev, true, ""},
		{regular, corev1.HostPathDirectory, false, "hostPath type check failed: " + regular + " is not a directory"},
		{regular, corev1.HostPathDirectoryOrCreate, false, "hostPath type check failed: " + regular + " is not a directory"},
		{d, corev1.HostPathFile, false, "hostPath type check failed: " + d + " is not a file"},
		{d, corev1.HostPathFileOrCreate, false, "hostPath type check failed: " + d + " is not a file"},
		{regular, corev1.HostPathSocket, false, "hostPath type check failed: " + regular + " is not a socket file"},
		{regular, corev1.HostPathCharDev, false, "hostPath type check failed: " + regular + " is not a character device"},
		{"/dev/null", corev1.HostPathBlockDev, false, "hostPath type check failed: /dev/null is not a block device"},
		{filepath.Join(d, "none"), corev1.HostPathDirectory, false, "hostPath type check failed: " + d + "/none is not a directory"},
		{d, "Weird", false, "Weird is an invalid volume type"},
		{"/a/../b", corev1.HostPathUnset, false, "invalid HostPath `/a/../b`: must not contain '..'"},
		{"rel", corev1.HostPathUnset, false, "must be an absolute path"},
		{filepath.Join(d, "no/parent"), corev1.HostPathFileOrCreate, false, "no such file or directory"},
	}
	for _, c := range cases {
		v := vol("h", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: c.path, Type: &c.kind}})
		got, err := m.Prepare(t.Context(), testPod(v), PodInfo{})
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s %q: error %v, want %q", c.path, c.kind, err, c.err)
			}
			continue
		}
		if err != nil || got["h"] != (Mounted{Path: c.path, File: c.file}) {
			t.Errorf("%s %q: %+v %v", c.path, c.kind, got["h"], err)
		}
	}
}

func TestUnsupported(t *testing.T) {
	m, _ := testManager(t)
	pod := testPod(
		vol("a", corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}),
		vol("b", corev1.VolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{}}),
		vol("c", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: "Tape"}}),
		vol("d", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{DownwardAPI: &corev1.DownwardAPIProjection{}}, {ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{Path: "x"}},
		}}}),
	)
	_, err := m.Prepare(t.Context(), pod, PodInfo{})
	fields := errorFields(err)
	for i, want := range []string{"spec.volumes[0].persistentVolumeClaim", "spec.volumes[1].awsElasticBlockStore", "spec.volumes[2].emptyDir.medium", "spec.volumes[3].projected.sources[1].clusterTrustBundle"} {
		if i >= len(fields) || fields[i] != want {
			t.Errorf("error %d: %v, want %s", i, fields, want)
		}
	}
}

// errorFields lists the fields of all *Error in a joined error.
func errorFields(err error) []string {
	var e *Error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		var out []string
		for _, one := range j.Unwrap() {
			out = append(out, errorFields(one)...)
		}
		return out
	}
	if errors.As(err, &e) {
		return []string{e.Field}
	}
	return nil
}

func TestProjected(t *testing.T) {
	m, src := testManager(t)
	src.cms["ca"] = &corev1.ConfigMap{Data: map[string]string{"ca.crt": "CA"}}
	src.secrets["s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}
	sources := []corev1.VolumeProjection{
		{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Path: "token", Audience: "aud", ExpirationSeconds: ptr(int64(3607))}},
		{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "ca"}, Items: []corev1.KeyToPath{{Key: "ca.crt", Path: "ca.crt"}}}},
		{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "s"}, Items: []corev1.KeyToPath{{Key: "k", Path: "deep/er/k", Mode: ptr(int32(0o440))}}}},
		{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{
			{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}},
			{Path: "labels", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels"}},
			{Path: "app", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.labels['app']"}},
			{Path: "cpu", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "limits.cpu", Divisor: resource.MustParse("1m")}},
			{Path: "mem", ResourceFieldRef: &corev1.ResourceFieldSelector{ContainerName: "c", Resource: "requests.memory", Divisor: resource.MustParse("1Mi")}},
		}}},
	}
	pod := testPod(vol("p", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources, DefaultMode: ptr(int32(0o604))}}))
	pod.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1500Ki")}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "p", MountPath: "/etc/p"}, {Name: "other", MountPath: "/etc/p/inner/dir"}}
	got := prepare(t, m, pod, PodInfo{})["p"]
	for name, body := range map[string]string{
		"token": "tok/aud/3607", "ca.crt": "CA", "deep/er/k": "v", "namespace": "shop", "labels": "app=\"web\"\ntier=\"a\\\"b\"",
		"app": "web", "cpu": "2000", "mem": "2",
	} {
		wantFile(t, filepath.Join(got.Path, name), body)
	}
	wantMode(t, filepath.Join(got.Path, "token"), 0o604, 0, 0)
	wantMode(t, filepath.Join(got.Path, "ca.crt"), 0o604, 0, 0)
	wantMode(t, filepath.Join(got.Path, "deep/er/k"), 0o440, 0, 0)
	wantMode(t, filepath.Join(got.Path, "inner/dir"), 0o755, 0, 0)

	// Rotation, and a pod of one user with an fsGroup.
	src.token = "new"
	pod.Labels["app"] = "web2"
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000))}
	if err := m.Update(t.Context(), pod, PodInfo{FSGroup: ptr(int64(2000))}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(got.Path, "token"), "new/aud/3607")
	wantFile(t, filepath.Join(got.Path, "app"), "web2")
	wantMode(t, filepath.Join(got.Path, "token"), 0o640, 1000, 2000)
	if _, err := os.Stat(filepath.Join(got.Path, "inner/dir")); err != nil {
		t.Errorf("mount point of another volume: %v", err)
	}
}

// TestCrashedWrite starts from every state that a crash can leave.
func TestCrashedWrite(t *testing.T) {
	m, src := testManager(t)
	src.cms["cfg"] = &corev1.ConfigMap{Data: map[string]string{"a": "1"}}
	pod := testPod(configMapVolume("v", "cfg"))
	got := prepare(t, m, pod, PodInfo{})["v"]
	for name, leave := range map[string]func(string) error{
		"half a directory": func(p string) error { return os.MkdirAll(filepath.Join(p, "..2026_01_01_00_00_00.5/x"), 0o755) },
		"new link":         func(p string) error { return os.Symlink("..nowhere", filepath.Join(p, newDataLink)) },
		"no links":         func(p string) error { return os.Remove(filepath.Join(p, "a")) },
		"old link":         func(p string) error { return os.Symlink(dataLink+"/gone", filepath.Join(p, "gone")) },
		"data gone":        func(p string) error { return os.Remove(filepath.Join(p, dataLink)) },
	} {
		if err := leave(got.Path); err != nil {
			t.Fatal(err)
		}
		prepare(t, m, pod, PodInfo{})
		wantFile(t, filepath.Join(got.Path, "a"), "1")
		entries, _ := os.ReadDir(got.Path)
		if len(entries) != 3 {
			t.Errorf("%s: volume holds %v", name, entries)
		}
	}
}

// TestAPIDown keeps what is there when the API server is away.
func TestAPIDown(t *testing.T) {
	m, src := testManager(t)
	src.secrets["s"] = &corev1.Secret{Data: map[string][]byte{"k": []byte("v")}}
	pod := testPod(secretVolume("v", "s"))
	got := prepare(t, m, pod, PodInfo{})["v"]
	src.err = errors.New("connection refused")
	if again := prepare(t, m, pod, PodInfo{})["v"]; again != got {
		t.Errorf("mounted %+v, want %+v", again, got)
	}
	wantFile(t, filepath.Join(got.Path, "k"), "v")
	if err := m.Update(t.Context(), pod, PodInfo{}); err == nil {
		t.Error("Update hides the failure")
	}
}
