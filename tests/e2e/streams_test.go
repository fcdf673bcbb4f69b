package e2e

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// TestPortForward reaches ports of a pod through the API server, also one that listens on
// the pod's loopback interface alone, several times at once and byte for byte.
func TestPortForward(t *testing.T) {
	e := setup(t)
	pod := e.busybox("server", "mkdir /www && head -c 3000000 /dev/urandom >/www/data && exec httpd -f -p 127.0.0.1:8081 -h /www")
	readyOnce(pod, "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8081/data")
	e.create(pod)
	pod = e.waitPod("server", podTimeout, running)
	want := strings.Fields(e.exec(pod, "sha256sum", "/www/data"))[0]
	ports := e.forward(pod, 8081, 9)
	var group sync.WaitGroup
	for range 5 {
		group.Go(func() {
			if got, err := e.hashOf(fmt.Sprintf("http://127.0.0.1:%d/data", ports[8081])); err != nil || got != want {
				t.Errorf("through the forwarded port came %s, want %s (%v)", got, want, err)
			}
		})
	}
	group.Wait()
	// Nobody listens on 9: the connection ends, and the others live on.
	if _, err := e.hashOf(fmt.Sprintf("http://127.0.0.1:%d/", ports[9])); err == nil {
		t.Error("a port without a listener answers")
	}
	again := e.forward(pod, 8081)
	if got, err := e.hashOf(fmt.Sprintf("http://127.0.0.1:%d/data", again[8081])); err != nil || got != want {
		t.Errorf("after a refused connection came %s, want %s (%v)", got, want, err)
	}
}

// readyOnce makes the pod Ready when the command has succeeded in it.
func readyOnce(pod *corev1.Pod, command ...string) {
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: command}}, PeriodSeconds: 1, TimeoutSeconds: 10,
	}
}

// forward forwards ports of this host to the pod's until the test ends.
func (e *env) forward(pod *corev1.Pod, remote ...int) map[int]int {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), time.Minute)
	defer cancel()
	ports, stop, err := workload.Forward(ctx, e.c.Config, pod, remote...)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(stop)
	return ports
}

// hashOf is the SHA-256 of what the URL gives.
func (e *env) hashOf(url string) (string, error) {
	ctx, cancel := context.WithTimeout(e.Context(), time.Minute)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(request)
	if err != nil {
		return "", err
	}
	defer func() { _ = response.Body.Close() }()
	sum := sha256.New()
	_, err = io.Copy(sum, response.Body)
	return hex.EncodeToString(sum.Sum(nil)), err
}

// TestCopy copies a tree into a pod and out of it again with kubectl cp: same bytes and
// modes. What is not there is not copied.
func TestCopy(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("box", "exec sleep 3600"))
	e.waitPod("box", podTimeout, running)
	source := filepath.Join(t.TempDir(), "tree")
	files := map[string][]byte{"empty": {}, "a b/c": []byte("text\n"), "large": make([]byte, 5<<20), "-x": {0, 1, 2, '\n'}}
	_, _ = rand.Read(files["large"])
	for name, data := range files {
		path := filepath.Join(source, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o740); err != nil {
			t.Fatal(err)
		}
	}
	back := filepath.Join(t.TempDir(), "back")
	e.kubectl("cp", source, "box:/tree")
	if got := e.exec(e.pod("box"), "stat", "-c", "%a %s", "/tree/a b/c", "/tree/large"); got != "740 5\n740 5242880\n" {
		t.Errorf("in the pod: %q", got)
	}
	e.kubectl("cp", "box:/tree", back)
	for name, want := range files {
		got, err := os.ReadFile(filepath.Join(back, name))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s came back with %d bytes of %d: %v", name, len(got), len(want), err)
		}
	}
	none := filepath.Join(t.TempDir(), "none") // kubectl itself may exit with 0 here
	_, _ = e.c.Kubectl(e.Context(), "cp", "--namespace", e.ns, "box:/no/such", none)
	if _, err := os.Stat(none); err == nil {
		t.Error("a file that is not there was copied")
	}
}

// kubectl runs kubectl in the test's namespace.
func (e *env) kubectl(args ...string) string {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), time.Minute)
	defer cancel()
	out, err := e.c.Kubectl(ctx, append(args, "--namespace", e.ns)...)
	if err != nil {
		e.Fatal(err)
	}
	return out
}

// TestHostNetwork: such a pod is in the machine's own network, with its addresses and ports.
func TestHostNetwork(t *testing.T) {
	e := setup(t)
	pod := e.busybox("host", "mkdir /www && hostname >/www/name && exec httpd -f -p 18081 -h /www")
	pod.Spec.HostNetwork = true
	readyOnce(pod, "wget", "-q", "-O", "/dev/null", "http://127.0.0.1:18081/name")
	e.create(pod)
	pod = e.waitPod("host", podTimeout, running)
	machine := e.machine(pod.Spec.NodeName)
	if v4 := machine.V4.String(); pod.Status.PodIP != v4 || pod.Status.HostIP != v4 || len(pod.Status.PodIPs) != 2 {
		t.Errorf("addresses are %s %v on %s, want the machine's %s", pod.Status.PodIP, pod.Status.PodIPs, pod.Status.HostIP, v4)
	}
	inside := e.exec(pod, "sh", "-c", "readlink /proc/self/ns/net; hostname")
	outside := e.on(pod.Spec.NodeName, "sh", "-c", "readlink /proc/1/ns/net; hostname")
	if inside != outside {
		t.Errorf("network and name inside are %q, outside %q", inside, outside)
	}
	other := e.busybox("asks", "exec sleep 3600")
	other.Spec.Containers[0].Image = registry.Agnhost
	e.create(other)
	answer := e.exec(e.waitPod("asks", podTimeout, running), "curl", "-sS", "--max-time", "20", "http://"+machine.V4.String()+":18081/name")
	if answer != pod.Spec.NodeName+"\n" {
		t.Errorf("the pod's port on the machine answers %q, want %s", answer, pod.Spec.NodeName)
	}
	ports := e.forward(pod, 18081)
	if got, err := e.hashOf(fmt.Sprintf("http://127.0.0.1:%d/name", ports[18081])); err != nil || got != hash(answer) {
		t.Errorf("a forwarded port of the machine: %v", err)
	}
	e.remove("host", time.Minute)
	if _, err := machine.Run(e.Context(), "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/18081"); err == nil {
		t.Error("the port is open after the pod has gone")
	}
}

func hash(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}
