package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/hostgw/bgp"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/internal/testcluster"
)

// TestBGPFollowsTheCluster: a node's identity, with the manifest's rights and no others,
// follows the ConfigMap, its Node and Services; mistakes are events. It has no peers and
// does not listen: nothing leaves the host.
func TestBGPFollowsTheCluster(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	ctx := t.Context()
	applyRBAC(t, c, "../../packaging/manifests/node-rbac.yaml")
	dir, err := os.MkdirTemp("", "bgp")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	events := record.NewFakeRecorder(100)
	client := c.Client(c.CA.Issue(t, "system:node:metal-1", "system:nodes"))
	a := &agent{
		g: &globals{layout: paths.Layout{Run: dir}}, name: "metal-1", log: slog.New(slog.DiscardHandler), client: client, recorder: events, metrics: prometheus.NewRegistry(),
		addresses: []netip.Addr{netip.MustParseAddr("192.0.2.1")}, podCIDRs: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24")},
		selfTold: true, peersTold: true, selfNode: &corev1.Node{},
		cfg: config.Config{Network: config.Network{Routing: "HostGW", BGPConfigMap: "kube-system/vk-metal-bgp"}},
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	tasks, err := a.bgpTasks(factory)
	if err != nil {
		t.Fatal(err)
	}
	run, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	factory.Start(run.Done())
	go func() { done <- task.Run(run, a.log, func() {}, tasks...) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		factory.Shutdown()
	}()
	maps := c.Admin.CoreV1().ConfigMaps("kube-system")
	text := "apiVersion: vk-metal.io/v1alpha1\nkind: BGPConfig\nasn: 64512\nlistenPort: 0\nadvertise: {services: [ClusterIP]}\n"
	m, err := maps.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "vk-metal-bgp"}, Data: map[string]string{bgpKey: text}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tells(t, a.g, "10.244.1.0/24")
	_, err = c.Admin.CoreV1().Services("default").Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.7.7", Ports: []corev1.ServicePort{{Port: 80}}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	tells(t, a.g, "10.244.1.0/24") // it has no endpoints
	m.Data[bgpKey] = text + "mash: true\n"
	if m, err = maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	says(t, events, "BGPConfigInvalid kube-system/vk-metal-bgp/bgp.yaml:6: mash: unknown key")
	tells(t, a.g, "10.244.1.0/24")
	m.Data[bgpKey] = strings.Replace(text, "[ClusterIP]}", "[ClusterIP], prefixes: [10.96.0.0/16]}", 1)
	if _, err = maps.Update(ctx, m, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	tells(t, a.g, "10.96.0.0/16", "10.244.1.0/24")
	a.mu.Lock()
	a.selfNode = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{bgp.AnnotationASN: "no"}}}
	a.mu.Unlock()
	a.tellBGP()
	says(t, events, "BGPInvalid node metal-1: annotation bgp.vk-metal.io/asn")
	if _, err := askBGP(ctx, a.g, http.MethodPost, "/withdraw"); err != nil {
		t.Fatal(err)
	}
	tells(t, a.g)
	if _, err := askBGP(ctx, a.g, http.MethodPost, "/announce"); err != nil {
		t.Fatal(err)
	}
	tells(t, a.g, "10.96.0.0/16", "10.244.1.0/24")
	if err := maps.Delete(ctx, "vk-metal-bgp", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	tells(t, a.g)
}

// tells waits until vk-metal bgp shows exactly these told routes.
func tells(t *testing.T, g *globals, want ...string) {
	t.Helper()
	awaitBGP(t, fmt.Sprintf("it tells %v", want), func() error {
		body, err := askBGP(t.Context(), g, http.MethodGet, "/status")
		if err != nil {
			return err
		}
		var s bgp.Status
		if err := json.Unmarshal(body, &s); err != nil {
			return err
		}
		got := []string{}
		for _, r := range s.Told {
			got = append(got, r.Prefix.String())
		}
		if strings.Join(got, " ") != strings.Join(want, " ") {
			return fmt.Errorf("it tells %v", got)
		}
		return printBGP(new(strings.Builder), &s, time.Now())
	})
}

func says(t *testing.T, events *record.FakeRecorder, want string) {
	t.Helper()
	deadline := time.After(time.Minute)
	for {
		select {
		case e := <-events.Events:
			if strings.Contains(e, want) {
				return
			}
			t.Logf("event %s", e)
		case <-deadline:
			t.Fatalf("no event says %q", want)
		}
	}
}

func applyRBAC(t *testing.T, c *testcluster.Cluster, path string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		r := c.Admin.RbacV1()
		switch obj := obj.(type) {
		case *rbacv1.ClusterRole:
			_, err = r.ClusterRoles().Create(t.Context(), obj, metav1.CreateOptions{})
		case *rbacv1.ClusterRoleBinding:
			_, err = r.ClusterRoleBindings().Create(t.Context(), obj, metav1.CreateOptions{})
		case *rbacv1.Role:
			_, err = r.Roles(obj.Namespace).Create(t.Context(), obj, metav1.CreateOptions{})
		case *rbacv1.RoleBinding:
			_, err = r.RoleBindings(obj.Namespace).Create(t.Context(), obj, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func awaitBGP(t *testing.T, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("it never became true that %s: %v", what, err)
}
