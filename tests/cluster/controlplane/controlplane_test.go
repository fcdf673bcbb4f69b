package controlplane

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// TestControlPlane brings a whole control plane up without any machine. It needs root
// and takes half a minute: run it with VK_METAL_E2E=1.
func TestControlPlane(t *testing.T) {
	if os.Getenv("VK_METAL_E2E") == "" {
		t.Skip("starts a cluster: set VK_METAL_E2E=1")
	}
	printer := progress.New(t.Output())
	store, err := artifacts.NewStore("", printer)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	programs, err := store.Kubernetes(ctx)
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(rig.CacheDir(), "test-controlplane-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := rig.Down(context.Background(), dir); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	r, err := rig.Up(ctx, rig.Config{Dir: dir, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	cp, err := Up(ctx, r, Options{Programs: programs, APIServers: 2}, printer)
	if err != nil {
		t.Fatal(err)
	}
	client, err := cp.Client()
	if err != nil {
		t.Fatal(err)
	}
	t.Run("second Up changes nothing", func(t *testing.T) { testSecondUp(t, r, cp) })
	t.Run("bootstrap token", func(t *testing.T) { testToken(t, cp) })
	t.Run("outage", func(t *testing.T) { testOutage(t, cp, client) })
	if err := cp.Stop(t.Context()); err != nil {
		t.Error(err)
	}
}

func testSecondUp(t *testing.T, r *rig.Rig, first *ControlPlane) {
	before, err := r.Process("kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	second, err := Up(t.Context(), r, first.opts, nil)
	if err != nil {
		t.Fatal(err)
	}
	after, err := r.Process("kube-apiserver")
	if err != nil || after.PID != before.PID || second.CAHash() != first.CAHash() {
		t.Errorf("API server %d became %d, CA %s became %s (%v)", before.PID, after.PID, first.CAHash(), second.CAHash(), err)
	}
	opened, err := Open(r)
	if err != nil || opened.CAHash() != first.CAHash() || len(opened.URLs()) != 2 {
		t.Errorf("Open: %v, %v", opened, err)
	}
}

// testToken reads cluster-info without any identity, then speaks to the second API
// server with a token alone: it may ask for a certificate and not list nodes.
func testToken(t *testing.T, cp *ControlPlane) {
	token, err := cp.NewToken(t.Context(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	config := &rest.Config{Host: cp.URLs()[1], TLSClientConfig: rest.TLSClientConfig{CAData: cp.CA()}}
	anonymous, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	info, err := anonymous.CoreV1().ConfigMaps("kube-public").Get(t.Context(), "cluster-info", metav1.GetOptions{})
	id, _, _ := strings.Cut(token, ".")
	if err != nil || info.Data["jws-kubeconfig-"+id] == "" {
		t.Fatalf("cluster-info for token %s: %v, %v", id, info, err)
	}
	config.BearerToken = token
	joining, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := joining.CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Errorf("list certificate requests with a token: %v", err)
	}
	if _, err := joining.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a bootstrap token lists nodes")
	}
}

// testOutage stops the first API server and starts it again; what was there is there.
func testOutage(t *testing.T, cp *ControlPlane, client kubernetes.Interface) {
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "before"}}
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := cp.StopAPIServer(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().List(t.Context(), metav1.ListOptions{}); err == nil {
		t.Error("a stopped API server answers")
	}
	if err := cp.StartAPIServer(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if err := WaitServiceAccount(t.Context(), client, "before"); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(cp.dir, "etcd", "member")); err != nil {
		t.Errorf("etcd's data: %v", err)
	}
}
