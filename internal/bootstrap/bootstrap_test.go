package bootstrap

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestParseToken(t *testing.T) {
	for text, good := range map[string]bool{
		"abcdef.0123456789abcdef": true, "": false, "abcdef": false, "ABCDEF.0123456789abcdef": false,
		"abcdef.0123456789abcdef\n": false, "abcdef.0123456789abcde": false,
	} {
		token, err := ParseToken(text)
		if (err == nil) != good || good && token.String() != text {
			t.Errorf("ParseToken(%q) = %v, %v", text, token, err)
		}
	}
}

func TestParsePin(t *testing.T) {
	ca := testcluster.NewCA(t, "x")
	pin, err := ParsePin(ca.Hash())
	if err != nil {
		t.Fatal(err)
	}
	if err := checkPins(ca.PEM(), []Pin{{}, pin}); err != nil {
		t.Errorf("right pin refused: %v", err)
	}
	if err := checkPins(ca.PEM(), []Pin{{}}); err == nil || !strings.Contains(err.Error(), ca.Hash()) {
		t.Errorf("wrong pin: %v, want an error that shows the hash", err)
	}
	for _, bad := range []string{"", "sha256:", "sha256:12", "md5:" + strings.Repeat("a", 64), strings.Repeat("a", 64)} {
		if _, err := ParsePin(bad); err == nil {
			t.Errorf("ParsePin(%q) passed", bad)
		}
	}
}

func TestKubeletCheck(t *testing.T) {
	proc := func(cmdline, cgroup string) string {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "42"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "42", "cmdline"), []byte(cmdline), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "42", "cgroup"), []byte(cgroup), 0o644); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	const (
		service = "0::/system.slice/kubelet.service\n"
		pod     = "4:memory:/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-podu.slice/vkm-u-c-0.service\n0::/\n"
		others  = "0::/kubepods.slice/kubepods-podu.slice/cri-containerd-1.scope\n"
	)
	cases := map[string]struct{ cmdline, state, want, cgroup string }{
		"nothing":           {"/bin/sh\x00-c\x00kubelet\x00", "inactive", "", service},
		"process":           {"/usr/bin/kubelet\x00--config=x\x00", "", "process 42", service},
		"in our pod":        {"/usr/bin/kubelet\x00--config=x\x00", "", "", pod},
		"in another's pod":  {"/usr/bin/kubelet\x00--config=x\x00", "", "process 42", others},
		"unit restarting":   {"sh\x00", "activating", "kubelet.service is activating", service},
		"says what to do":   {"sh\x00", "active", "systemctl disable --now kubelet.service", service},
		"name in arguments": {"vim\x00kubelet\x00", "failed", "", service},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			err := KubeletCheck{Proc: proc(tc.cmdline, tc.cgroup), UnitState: func(context.Context, string) string { return tc.state }}.Run(t.Context())
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("Run = %v, want %q", err, tc.want)
			}
		})
	}
}

// TestJoin goes the whole way against a real control plane: discovery, certificate,
// rotation, serving certificate.
func TestJoin(t *testing.T) {
	cluster := testcluster.Start(t, testcluster.Options{APIServers: 2})
	token, err := ParseToken(cluster.Token("abcdef", "0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	pin, err := ParsePin(cluster.CA.Hash())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("discovery", func(t *testing.T) { testDiscovery(t, cluster, token, pin) })
	dir := t.TempDir()
	options := JoinOptions{
		ConfigPath: filepath.Join(dir, "config.yaml"), Servers: cluster.URLs, Token: token, Pins: []Pin{pin},
		NodeName: "metal-7", PKI: filepath.Join(dir, "pki"), Wait: time.Minute, Log: quiet(),
	}
	// The defaults lie in /etc: the test's configuration moves them.
	seed := "apiVersion: " + config.APIVersion + "\nkind: NodeConfig\nclusterCA: " + dir + "/ca.crt\nbootstrapKubeconfig: " + dir + "/bootstrap\n"
	if err := os.WriteFile(options.ConfigPath, []byte(seed), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Join(t.Context(), options)
	if err != nil {
		t.Fatalf("Join: %v", err)
	}
	if _, err := os.Stat(cfg.BootstrapKubeconfig); !os.IsNotExist(err) {
		t.Errorf("the bootstrap token is still on disk: %v", err)
	}
	if _, err := Join(t.Context(), options); err != nil {
		t.Errorf("second Join: %v", err)
	}
	other := options
	other.NodeName = "metal-8"
	if _, err := Join(t.Context(), other); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Errorf("Join under another name = %v, want a refusal that names --force", err)
	}
	identity, err := NewIdentity(IdentityOptions{
		NodeName: "metal-7", Servers: cluster.URLs, CA: cluster.CA.Pool(), Dir: options.PKI, Log: quiet(),
	})
	if err != nil {
		t.Fatalf("NewIdentity: %v", err)
	}
	client, err := kubernetes.NewForConfig(identity.Client().RESTConfig())
	if err != nil {
		t.Fatal(err)
	}
	review, err := client.CoreV1().Nodes().Get(t.Context(), "metal-7", metav1.GetOptions{})
	if err == nil || !strings.Contains(err.Error(), "not found") {
		t.Errorf("read our Node: %v, %v, want not found (and not forbidden)", review, err)
	}
	t.Run("rotation", func(t *testing.T) { testRotation(t, identity, client) })
	t.Run("serving certificate", func(t *testing.T) { testServing(t, cluster, client, options.PKI) })
	t.Run("fail-over", func(t *testing.T) {
		cluster.KillAPIServer(0)
		start := time.Now()
		if _, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
			t.Errorf("list after the first API server died: %v", err)
		}
		t.Logf("answered by %s after %v", identity.Client().Current(), time.Since(start))
	})
}

func testDiscovery(t *testing.T, cluster *testcluster.Cluster, token Token, pin Pin) {
	cases := map[string]struct {
		servers []string
		token   Token
		pins    []Pin
		want    string
	}{
		"good":             {cluster.URLs, token, []Pin{pin}, ""},
		"first is dead":    {[]string{"https://127.0.0.1:1", cluster.URLs[0]}, token, []Pin{pin}, ""},
		"without pins":     {cluster.URLs, token, nil, ""},
		"wrong pin":        {cluster.URLs, token, []Pin{{}}, "does not match --ca-hash"},
		"wrong secret":     {cluster.URLs, Token{token.ID, "0000000000000000"}, []Pin{pin}, "does not match the token"},
		"unknown token":    {cluster.URLs, Token{"zzzzzz", token.Secret}, []Pin{pin}, "not signed for token zzzzzz"},
		"nobody listening": {[]string{"https://127.0.0.1:1"}, token, []Pin{pin}, "connection refused"},
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			ca, err := Discover(t.Context(), tc.servers, tc.token, tc.pins)
			if tc.want == "" && (err != nil || string(ca) != string(cluster.CA.PEM())) {
				t.Errorf("Discover = %v", err)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("Discover = %v, want %q", err, tc.want)
			}
			if err != nil && strings.Contains(err.Error(), token.Secret) {
				t.Errorf("the error shows the secret: %v", err)
			}
		})
	}
}

// testRotation forces a rotation and sees that the client goes on with the new certificate.
func testRotation(t *testing.T, identity *Identity, client kubernetes.Interface) {
	before := identity.store.valid().Leaf.SerialNumber
	rotator, ok := identity.manager.(interface{ RotateCerts() (bool, error) })
	if !ok {
		t.Fatal("the certificate manager cannot be told to rotate")
	}
	if done, err := rotator.RotateCerts(); err != nil || !done {
		t.Fatalf("RotateCerts = %v, %v", done, err)
	}
	if after := identity.store.valid().Leaf.SerialNumber; after.Cmp(before) == 0 {
		t.Error("still the old certificate")
	}
	if _, err := client.CoreV1().Services("").List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list with the new certificate: %v", err)
	}
}

func testServing(t *testing.T, cluster *testcluster.Cluster, client kubernetes.Interface, dir string) {
	serving, err := NewServing(ServingOptions{
		NodeName: "metal-7", Dir: dir, Client: client, Log: quiet(),
		Names: func() ([]string, []netip.Addr) {
			return []string{"metal-7"}, []netip.Addr{netip.MustParseAddr("192.0.2.7")}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	current := func() *tls.Certificate {
		c, err := serving.Certificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if issuer := current(); issuer.Leaf != nil && issuer.Leaf.Issuer.CommonName == "kubernetes" {
		t.Fatal("not self-signed before approval")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = serving.Run(ctx) }()
	for deadline := time.Now().Add(time.Minute); serving.store.valid() == nil; time.Sleep(50 * time.Millisecond) {
		cluster.ApproveServing()
		if time.Now().After(deadline) {
			t.Fatal("no serving certificate in a minute")
		}
	}
	leaf := current().Leaf
	if err := leaf.VerifyHostname("192.0.2.7"); err != nil || leaf.Issuer.CommonName != "kubernetes" {
		t.Errorf("certificate from %q: %v", leaf.Issuer.CommonName, err)
	}
}
