package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

const pools = `apiVersion: vk-metal.io/v1alpha1
kind: AddressPools
pools:
- {name: lan, ranges: [%s-%s]}
`

// startLoadBalancers runs the controller as its manifest says, with a pool of eight
// addresses of the nodes' LAN, and has the nodes announce them.
func (e *env) startLoadBalancers() {
	e.Helper()
	for _, machine := range e.c.Machines() {
		e.configure(machine.Name, "network: {announceLAN: true}")
	}
	lan := e.c.Machines()[0].V4.As4()
	lan[3] = 240
	first := netip.AddrFrom4(lan)
	lan[3] = 247
	maps := e.c.Client.CoreV1().ConfigMaps(metav1.NamespaceSystem)
	_, err := maps.Create(e.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "vk-metal-pools"}, Data: map[string]string{"pools.yaml": fmt.Sprintf(pools, first, netip.AddrFrom4(lan))},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	root, err := artifacts.Root()
	if err != nil {
		e.Fatal(err)
	}
	manifest := filepath.Join(root, "packaging", "manifests", "controller.yaml")
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if out, err := e.c.Kubectl(ctx, "delete", "--wait=true", "-f", manifest); err != nil {
			e.Errorf("remove the controller: %v\n%s", err, out)
		}
		if err := maps.Delete(ctx, "vk-metal-pools", metav1.DeleteOptions{}); err != nil {
			e.Error(err)
		}
	})
	if out, err := e.c.Kubectl(e.Context(), "apply", "-f", manifest); err != nil {
		e.Fatalf("apply the manifest of the controller: %v\n%s", err, out)
	}
	e.eventually(2*time.Minute, func() string {
		d, err := e.c.Client.AppsV1().Deployments(metav1.NamespaceSystem).Get(e.Context(), "vk-metal-controller", metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if d.Status.AvailableReplicas != *d.Spec.Replicas {
			return fmt.Sprintf("%d replicas of the controller are available", d.Status.AvailableReplicas)
		}
		return ""
	})
}

// outside asks as a host of the LAN that is no node; each question is a connection.
func (e *env) outside(url string) (string, error) {
	client := http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DialContext: e.c.Dial, DisableKeepAlives: true}}
	request, err := http.NewRequestWithContext(e.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return strings.TrimSpace(string(body)), err
}

// TestLoadBalancerOnALAN: a Service gets an address from the controller, a host of the LAN
// reaches it and is seen with its own address; when the node that announces it is cut off,
// the other one does.
func TestLoadBalancerOnALAN(t *testing.T) {
	e := setupMore(t)
	e.startLoadBalancers()
	e.deploy(2)
	s := e.service("lan", func(spec *corev1.ServiceSpec) {
		spec.Type, spec.ExternalTrafficPolicy = corev1.ServiceTypeLoadBalancer, corev1.ServiceExternalTrafficPolicyLocal
	})
	var address string
	e.eventually(time.Minute, func() string {
		now, err := e.c.Client.CoreV1().Services(e.ns).Get(e.Context(), s.Name, metav1.GetOptions{})
		if err != nil {
			return err.Error()
		}
		if len(now.Status.LoadBalancer.Ingress) == 0 {
			return "the Service has no address"
		}
		address = net.JoinHostPort(now.Status.LoadBalancer.Ingress[0].IP, "80")
		return ""
	})
	var who string
	asks := func(not string) func() string {
		return func() (missing string) {
			var err error
			if who, err = e.outside("http://" + address + "/hostname"); err != nil {
				return err.Error()
			}
			if who == not {
				return not + " still answers"
			}
			return ""
		}
	}
	begin := time.Now()
	e.eventually(time.Minute, asks(""))
	t.Logf("%s answers after %s", address, time.Since(begin).Round(time.Millisecond))
	if client, err := e.outside("http://" + address + "/clientip"); err != nil || strings.HasPrefix(client, e.c.Machines()[0].V4.String()) || strings.HasPrefix(client, e.c.Machines()[1].V4.String()) {
		t.Errorf("the pod sees %q, %v", client, err)
	}
	first := e.pod(who)
	announcer := e.machine(first.Spec.NodeName)
	if err := announcer.Partition(e.Context()); err != nil {
		t.Fatal(err)
	}
	begin = time.Now()
	e.eventually(2*time.Minute, asks(first.Name))
	t.Logf("its node is cut off: %s answers after %s", who, time.Since(begin).Round(time.Millisecond))
	if err := announcer.Heal(e.Context()); err != nil {
		t.Fatal(err)
	}
	if err := e.c.WaitNodeReady(e.Context(), announcer.Name); err != nil {
		t.Fatal(err)
	}
	e.eventually(time.Minute, asks(""))
}
