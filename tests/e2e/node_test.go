package e2e

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/vk-metal/vk-metal/tests/cluster"
)

// through is the same test as seen by the i-th API server.
func (e *env) through(i int) *env {
	e.Helper()
	c := *e.c
	c.Config = rest.CopyConfig(e.c.Config)
	c.Config.Host = e.c.ControlPlane.URLs()[i]
	client, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		e.Fatal(err)
	}
	c.Client = client
	return &env{T: e.T, c: &c, ns: e.ns, ctx: e.ctx}
}

// TestAPIServersTakeOver stops each API server in turn: the nodes go on with the other, and
// no pod notices.
func TestAPIServersTakeOver(t *testing.T) {
	e := setupMore(t)
	nodes := []string{cluster.NodeName(0), cluster.NodeName(1)}
	for _, node := range nodes {
		pod := e.busybox("steady-"+node, "exec sleep 3600")
		pod.Spec.NodeName = node
		e.create(pod)
		e.waitPod(pod.Name, podTimeout, running)
	}
	before := e.allUnits(nodes)
	for gone := range e.c.ControlPlane.URLs() {
		e.stopAPIServers(gone)
		e := e.through(1 - gone)
		for _, node := range nodes {
			e.lifeOn(node, fmt.Sprintf("without-%d", gone))
		}
		e.startAPIServers(gone)
	}
	if after := e.allUnits(nodes); !maps.Equal(before, after) {
		t.Errorf("units %v became %v", before, after)
	}
	for _, node := range nodes {
		if pod := e.pod("steady-" + node); pod.Status.ContainerStatuses[0].RestartCount != 0 || running(pod) != "" {
			t.Errorf("the pod on %s:\n%s", node, describe(pod))
		}
	}
}

// lifeOn lets one pod live on a node: it starts, crashes, comes back and goes.
func (e *env) lifeOn(node, name string) {
	e.Helper()
	pod := e.busybox(name+"-"+node, "exec sleep 3600")
	pod.Spec.NodeName = node // the scheduler knows the first API server only
	start := time.Now()
	e.create(pod)
	pod = e.waitPod(pod.Name, podTimeout, running)
	e.Logf("%s: runs after %s", pod.Name, time.Since(start).Round(time.Millisecond))
	e.killMain(pod)
	e.waitPod(pod.Name, podTimeout, restarted(1))
	e.remove(pod.Name, time.Minute)
	e.leaseGoesOn(node)
}

// leaseGoesOn waits until the node has renewed its lease.
func (e *env) leaseGoesOn(node string) {
	e.Helper()
	leases := e.c.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease)
	begun := time.Now()
	e.eventually(time.Minute, func() string {
		lease, err := leases.Get(e.Context(), node, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if !lease.Spec.RenewTime.After(begun.Add(-time.Second)) {
			return fmt.Sprintf("lease of %s was renewed at %s", node, lease.Spec.RenewTime)
		}
		return ""
	})
}

// allUnits are the nodes' running units of the test's steady pods.
func (e *env) allUnits(nodes []string) map[string]string {
	e.Helper()
	all := map[string]string{}
	for _, node := range nodes {
		maps.Copy(all, e.podUnits(e.pod("steady-"+node)))
	}
	return all
}

// allAPIServers are the numbers of all.
func (e *env) allAPIServers() []int {
	var all []int
	for i := range e.c.ControlPlane.URLs() {
		all = append(all, i)
	}
	return all
}

// stopAPIServers stops some API servers at once; the test's end starts them.
func (e *env) stopAPIServers(which ...int) {
	e.Helper()
	for _, i := range which {
		e.Cleanup(func() { // of no effect on one that runs
			ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
			defer cancel()
			if err := e.c.ControlPlane.StartAPIServer(ctx, i); err != nil {
				e.Error(err)
			}
		})
	}
	var group errgroup.Group
	for _, i := range which {
		group.Go(func() error { return e.c.ControlPlane.StopAPIServer(e.Context(), i) })
	}
	if err := group.Wait(); err != nil {
		e.Fatal(err)
	}
}

func (e *env) startAPIServers(which ...int) {
	e.Helper()
	for _, i := range which {
		if err := e.c.ControlPlane.StartAPIServer(e.Context(), i); err != nil {
			e.Fatal(err)
		}
	}
}

// clientCertificate links to the file where an agent keeps its certificate and key.
const clientCertificate = "/var/lib/vk-metal/pki/vk-metal-client-current.pem"

// TestClientCertificateIsRenewed gives an agent a certificate that ends soon: it gets itself
// another, and goes on with it when the first has ended.
func TestClientCertificateIsRenewed(t *testing.T) {
	e := setupMore(t)
	node := cluster.NodeName(1)
	steady := e.busybox("steady", "exec sleep 3600")
	steady.Spec.NodeName = node
	e.create(steady)
	before := e.podUnits(e.waitPod("steady", podTimeout, running))
	const life = 30 * time.Second
	short, err := e.c.ControlPlane.NodeCertificate(node, life)
	if err != nil {
		t.Fatal(err)
	}
	ends := time.Now().Add(life)
	old := strings.TrimSpace(e.on(node, "readlink", clientCertificate))
	e.Cleanup(func() {
		if e.Failed() { // other tests need the node
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			_, _ = e.machine(node).Run(ctx, "sh", "-c", "ln -sf "+old+" "+clientCertificate+" && systemctl restart vk-metal.service")
		}
	})
	const file = "/var/lib/vk-metal/pki/vk-metal-client-short.pem"
	if err := e.machine(node).WriteFile(e.Context(), file, short, 0o600); err != nil {
		t.Fatal(err)
	}
	e.on(node, "sh", "-c", "ln -sf "+file+" "+clientCertificate+" && systemctl restart vk-metal.service")
	e.eventually(time.Until(ends), func() string {
		if cert := e.certificate(node); cert.NotAfter.Before(ends.Add(time.Hour)) {
			return fmt.Sprintf("the certificate ends at %s", cert.NotAfter)
		}
		return ""
	})
	cert := e.certificate(node)
	if cert.Subject.CommonName != "system:node:"+node || strings.Join(cert.Subject.Organization, ",") != "system:nodes" {
		t.Errorf("the new certificate is for %s", cert.Subject)
	}
	time.Sleep(time.Until(ends.Add(time.Second))) // what is tested is life after the end of the first
	e.lifeOn(node, "renewed")
	if after := e.podUnits(e.pod("steady")); !maps.Equal(before, after) {
		t.Errorf("units %v became %v", before, after)
	}
}

// certificate is the client certificate that the node's agent has on disk.
func (e *env) certificate(node string) *x509.Certificate {
	e.Helper()
	rest := []byte(e.on(node, "cat", clientCertificate))
	for {
		block, more := pem.Decode(rest)
		if block == nil {
			e.Fatalf("no certificate in %s", clientCertificate)
		}
		if block.Type != "CERTIFICATE" {
			rest = more
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			e.Fatal(err)
		}
		return cert
	}
}

// TestNoAgentBesideAKubelet: where a kubelet runs, the agent says so and does not start, its
// pods run on, and it starts by itself when the kubelet has gone.
func TestNoAgentBesideAKubelet(t *testing.T) {
	e := setup(t)
	node := cluster.NodeName(1)
	pod := e.busybox("steady", "exec sleep 3600")
	pod.Spec.NodeName = node
	e.create(pod)
	before := e.podUnits(e.waitPod("steady", podTimeout, running))
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = e.machine(node).Run(ctx, "sh", "-c", "systemctl stop kubelet.service; rm -f /run/vk-metal/starts.json /root/kubelet")
	})
	e.on(node, "sh", "-c", "cp /bin/sleep /root/kubelet && systemd-run --quiet --unit=kubelet.service /root/kubelet 3600")
	mark := strings.TrimSpace(e.on(node, "date", "+%s"))
	e.on(node, "systemctl", "restart", "--no-block", "vk-metal.service")
	e.eventually(time.Minute, func() string {
		log := e.on(node, "journalctl", "--no-pager", "-q", "-u", "vk-metal.service", "--since=@"+mark, "-o", "cat")
		if !strings.Contains(log, "a kubelet runs on this server") || !strings.Contains(log, "systemctl disable --now kubelet.service") {
			return "the agent says: " + log
		}
		return ""
	})
	if out, err := e.machine(node).Run(e.Context(), "systemctl", "is-active", "vk-metal.service"); err == nil {
		t.Errorf("the agent is %s beside a kubelet", out)
	}
	if after := e.podUnits(e.pod("steady")); !maps.Equal(before, after) {
		t.Errorf("units %v became %v", before, after)
	}
	e.on(node, "systemctl", "stop", "kubelet.service")
	e.eventually(time.Minute, func() string {
		if out, err := e.machine(node).Run(e.Context(), "systemctl", "is-active", "vk-metal.service"); err != nil {
			return "the agent is " + out
		}
		return ""
	})
	e.lifeOn(node, "after")
	if after := e.podUnits(e.pod("steady")); !maps.Equal(before, after) {
		t.Errorf("units %v became %v", before, after)
	}
}
