package volumes

import (
	"bytes"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/vk-metal/vk-metal/internal/objects"
)

func certificatePEM(der ...string) string {
	var out []byte
	for _, d := range der {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: []byte(d)})...)
	}
	return string(out)
}

func projectedVolume(name string, sources ...corev1.VolumeProjection) corev1.Volume {
	return vol(name, corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: sources}})
}

func TestTrustBundles(t *testing.T) {
	m, src := testManager(t)
	source := &corev1.ClusterTrustBundleProjection{Name: ptr("a"), Path: "deep/ca.pem"}
	pod := testPod(projectedVolume("v", corev1.VolumeProjection{ClusterTrustBundle: source}))
	for _, tc := range []struct {
		signer *string
		err    error
		want   string
	}{
		{nil, nil, `clustertrustbundles.certificates.k8s.io "a" not found`},
		{ptr("s"), nil, "combination of signerName and labelSelector matched zero ClusterTrustBundles"},
		{ptr("s"), errors.New("API server is down"), "API server is down"},
		{
			ptr("s"), &objects.NotServedError{Resource: "clustertrustbundles", Versions: []string{"v1beta1"}},
			"sources of type clusterTrustBundle are not supported by this node: the cluster does not serve clustertrustbundles of certificates.k8s.io (v1beta1)",
		},
	} {
		source.SignerName, src.err = tc.signer, tc.err
		if tc.signer != nil {
			source.Name = nil
		}
		_, err := m.Prepare(t.Context(), pod, PodInfo{})
		var located *Error
		if !errors.As(err, &located) || located.Field != "spec.volumes[0].projected.sources[0].clusterTrustBundle" || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("error %v, want %s", err, tc.want)
		}
	}
	src.err = nil
	source.Optional = ptr(true)
	dir := prepare(t, m, pod, PodInfo{})["v"].Path
	wantFile(t, filepath.Join(dir, "deep/ca.pem"), "")
	wantMode(t, filepath.Join(dir, "deep/ca.pem"), 0o644, 0, 0)

	// What comes later is taken, each certificate once; the same ones in another order are no change.
	src.bundles = []string{"x\n" + certificatePEM("2", "1"), certificatePEM("3", "2") + "\n-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"}
	update := func() (version string) {
		t.Helper()
		if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
			t.Fatal(err)
		}
		wantFile(t, filepath.Join(dir, "deep/ca.pem"), certificatePEM("1", "2", "3"))
		version, err := os.Readlink(filepath.Join(dir, dataLink))
		if err != nil {
			t.Fatal(err)
		}
		return version
	}
	version := update()
	slices.Reverse(src.bundles)
	if again := update(); again != version {
		t.Errorf("..data moved from %s to %s", version, again)
	}
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000))}
	m.removed(t)
	dir = prepare(t, m, pod, PodInfo{FSGroup: ptr(int64(2000))})["v"].Path
	wantMode(t, filepath.Join(dir, "deep/ca.pem"), 0o640, 1000, 2000)
}

func TestPodCertificates(t *testing.T) {
	m, src := testManager(t)
	source := &corev1.PodCertificateProjection{SignerName: "example.com/s", KeyType: "ED25519", CredentialBundlePath: "../bundle"}
	pod := testPod(projectedVolume("v", corev1.VolumeProjection{DownwardAPI: &corev1.DownwardAPIProjection{}}, corev1.VolumeProjection{PodCertificate: source}))
	if _, err := m.Prepare(t.Context(), pod, PodInfo{}); err == nil || !strings.Contains(err.Error(), "must not contain '..'") || len(src.asked) > 0 {
		t.Errorf("a path outside of the volume: %v, asked %v", err, src.asked)
	}
	source.CredentialBundlePath, source.KeyPath, source.CertificateChainPath = "bundle", "own/key", "own/chain"
	src.err = &objects.NotServedError{Resource: "podcertificaterequests", Versions: []string{"v1beta1"}}
	const refusal = "sources of type podCertificate are not supported by this node: the cluster does not serve podcertificaterequests of certificates.k8s.io (v1beta1)"
	if _, err := m.Prepare(t.Context(), pod, PodInfo{}); err == nil || !strings.Contains(err.Error(), refusal) {
		t.Errorf("error %v, want %s", err, refusal)
	}
	src.err, src.cert = nil, objects.Credential{Key: []byte("KEY\n"), Chain: []byte("CHAIN\n")}
	dir := prepare(t, m, pod, PodInfo{})["v"].Path
	if ok, err := onMemory(dir); !ok || err != nil {
		t.Errorf("the key is not on a tmpfs: %v", err)
	}
	for name, want := range map[string]string{"bundle": "KEY\nCHAIN\n", "own/key": "KEY\n", "own/chain": "CHAIN\n"} {
		wantFile(t, filepath.Join(dir, name), want)
	}
	asked := src.asked[len(src.asked)-1]
	if asked.Pod.UID != testUID || asked.Volume != "v" || asked.Index != 1 || asked.Spec != source {
		t.Errorf("asked for %+v", asked)
	}
	// A renewal changes all files at once.
	src.cert = objects.Credential{Key: []byte("KEY2\n"), Chain: []byte("CHAIN2\n")}
	source.KeyPath = ""
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: ptr(int64(1000))}
	if err := m.Update(t.Context(), pod, PodInfo{FSGroup: ptr(int64(2000))}); err != nil {
		t.Fatal(err)
	}
	wantFile(t, filepath.Join(dir, "bundle"), "KEY2\nCHAIN2\n")
	wantMode(t, filepath.Join(dir, "bundle"), 0o640, 1000, 2000)
	if _, err := os.Lstat(filepath.Join(dir, "own/key")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a key that is not asked for: %v", err)
	}
}

// TestWhatIsKeptOfCertificates: it is root's alone, among the pod's secrets, and goes with them.
func TestWhatIsKeptOfCertificates(t *testing.T) {
	m, src := testManager(t)
	pod := testPod(projectedVolume("v", corev1.VolumeProjection{PodCertificate: &corev1.PodCertificateProjection{CredentialBundlePath: "bundle"}}))
	prepare(t, m, pod, PodInfo{})
	kept := src.asked[0].Kept
	if state, err := kept.Load(); err != nil || state != nil {
		t.Errorf("before anything was saved: %q, %v", state, err)
	}
	for _, state := range []string{"a longer one", "another"} {
		if err := kept.Save([]byte(state)); err != nil {
			t.Fatal(err)
		}
		prepare(t, m, pod, PodInfo{})
		if got, err := src.asked[len(src.asked)-1].Kept.Load(); err != nil || string(got) != state {
			t.Errorf("kept %q, %v, want %q", got, err, state)
		}
	}
	path := filepath.Join(m.memoryDir(testUID), dirCertificates, "v.0")
	wantMode(t, path, 0o600, 0, 0)
	if ok, err := onMemory(path); !ok || err != nil {
		t.Errorf("the key is not on a tmpfs: %v", err)
	}
	m.removed(t)
	if got, err := kept.Load(); err != nil || got != nil {
		t.Errorf("after the pod: %q, %v", got, err)
	}
}

func TestAnchorsAreASet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		certificates := rapid.SliceOf(rapid.StringN(1, 40, -1)).Draw(t, "certificates")
		noise := rapid.SampledFrom([]string{"", "\n", "words\n", "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"})
		var texts []string
		for _, c := range rapid.Permutation(append(certificates, certificates...)).Draw(t, "order") {
			texts = append(texts, noise.Draw(t, "noise")+certificatePEM(c))
		}
		want := slices.Compact(slices.Sorted(slices.Values(certificates)))
		if got := string(anchors(texts)); got != certificatePEM(want...) {
			t.Fatalf("got %q, want %q", got, certificatePEM(want...))
		}
		if got := string(anchors([]string{strings.Join(texts, "")})); got != certificatePEM(want...) {
			t.Fatalf("of one text: %q, want %q", got, certificatePEM(want...))
		}
	})
}

func FuzzAnchors(f *testing.F) {
	f.Add(certificatePEM("1", "2"))
	f.Add("-----BEGIN CERTIFICATE-----\na: b\n\nAAAA\n-----END CERTIFICATE-----")
	f.Add("-----BEGIN ")
	f.Fuzz(func(t *testing.T, text string) {
		out := anchors([]string{text, text})
		if !bytes.Equal(anchors([]string{string(out)}), out) || !bytes.Equal(anchors([]string{text}), out) {
			t.Errorf("%q is not what it makes", out)
		}
	})
}
