package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// service makes a Service of the Deployment "web".
func (e *env) service(name string, change ...func(*corev1.ServiceSpec)) *corev1.Service {
	e.Helper()
	s := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: e.ns},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeNodePort, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(workload.Port)}},
		},
	}
	for _, f := range change {
		f(&s.Spec)
	}
	s, err := e.c.Client.CoreV1().Services(e.ns).Create(e.Context(), s, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return s
}

// scale sets the replicas of "web" and waits for them.
func (e *env) scale(replicas int32) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), 2*time.Minute)
	defer cancel()
	patch := fmt.Appendf(nil, `{"spec":{"replicas":%d}}`, replicas)
	if _, err := e.c.Client.AppsV1().Deployments(e.ns).Patch(ctx, "web", types.MergePatchType, patch, metav1.PatchOptions{}, "scale"); err != nil {
		e.Fatal(err)
	}
	if err := workload.WaitRolledOut(ctx, e.c.Client, e.ns, "web"); err != nil {
		e.Fatal(err)
	}
}

// asker asks an address for the name of the pod that answers: curl's output and error.
type asker struct {
	name string
	curl func(ctx context.Context, url string) (string, error)
}

// askers are one pod of each node, and the nodes themselves: a pod in the node's network.
func (e *env) askers() []asker {
	e.Helper()
	var out []asker
	seen := map[string]bool{}
	for _, pod := range e.web() {
		if !seen[pod.Spec.NodeName] {
			seen[pod.Spec.NodeName] = true
			out = append(out, e.asker("pod "+pod.Name, &pod))
		}
	}
	for _, machine := range e.c.Machines() {
		pod := e.busybox("host-"+machine.Name, "sleep 1000")
		pod.Spec.HostNetwork, pod.Spec.NodeName = true, machine.Name
		pod.Spec.Containers[0].Image = registry.Agnhost
		e.create(pod)
		out = append(out, e.asker("node "+machine.Name, e.waitPod(pod.Name, time.Minute, running)))
	}
	return out
}

func (e *env) asker(name string, pod *corev1.Pod) asker {
	return asker{name, func(ctx context.Context, url string) (string, error) {
		stdout, stderr, err := workload.Exec(ctx, e.c.Config, pod, "", nil, "curl", "-sS", "--max-time", "20", "-k", url)
		if err != nil {
			return "", fmt.Errorf("%w: %s", err, stderr)
		}
		return stdout, nil
	}}
}

// reaches asks until every pod of "web" has answered, without an error in between once the
// node's rules are as the Service is now.
func (e *env) reaches(a asker, address string) {
	e.Helper()
	e.eventually(time.Minute, func() string { return e.round(a, address) })
}

// round is empty when every pod of "web" has answered and no connection failed.
func (e *env) round(a asker, address string) string {
	e.Helper()
	missing := map[string]bool{}
	for _, pod := range e.web() {
		missing[pod.Name] = true
	}
	for range 30 * len(missing) {
		who, err := a.curl(e.Context(), "http://"+address+"/hostname")
		if err != nil {
			return fmt.Sprintf("%s asks %s: %v", a.name, address, err)
		}
		if delete(missing, strings.TrimSpace(who)); len(missing) == 0 {
			return ""
		}
	}
	return fmt.Sprintf("%s asks %s: never answered by %v", a.name, address, missing)
}

// becomes polls until the answer is an error (refused) or is not.
func (e *env) becomes(a asker, address string, refused bool) {
	e.Helper()
	var err error
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		_, err = a.curl(e.Context(), "http://"+address+"/hostname")
		if refused == (err != nil && strings.Contains(err.Error(), "curl: (7)")) && (refused || err == nil) {
			return
		}
	}
	e.Errorf("%s asks %s: %v, want refused: %t", a.name, address, err, refused)
}

func TestServicesReachTheirPods(t *testing.T) {
	e := setup(t)
	e.deploy(4)
	s := e.service("web")
	cluster := net.JoinHostPort(s.Spec.ClusterIP, "80")
	askers := e.askers()
	node := askers[len(askers)-1]
	for _, a := range askers {
		e.becomes(a, cluster, false)
		e.reaches(a, cluster)
		for _, machine := range e.c.Machines() {
			e.reaches(a, net.JoinHostPort(machine.V4.String(), strconv.Itoa(int(s.Spec.Ports[0].NodePort))))
		}
		e.becomes(a, net.JoinHostPort(s.Spec.ClusterIP, "81"), true)
	}
	e.scale(1)
	e.reaches(node, cluster)
	e.scale(0)
	e.becomes(node, cluster, true)
}

// TestAPIServerIsAService: pods find the API server by its Service.
func TestAPIServerIsAService(t *testing.T) {
	e := setup(t)
	e.deploy(2)
	s, err := e.c.Client.CoreV1().Services("default").Get(e.Context(), "kubernetes", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range e.askers() {
		e.eventually(time.Minute, func() string {
			out, err := a.curl(e.Context(), "https://"+s.Spec.ClusterIP+"/version")
			if err != nil || !strings.Contains(out, "gitVersion") {
				return fmt.Sprintf("%s: %s, %v", a.name, out, err)
			}
			return ""
		})
	}
}

// TestClientsSeeNoEndpointChange: connections never fail while pods come, go and are
// replaced.
func TestClientsSeeNoEndpointChange(t *testing.T) {
	e := setup(t)
	e.deploy(3)
	s := e.service("web")
	url := "http://" + net.JoinHostPort(s.Spec.ClusterIP, "80") + "/hostname"
	script := `while ! [ -e /stop ]; do n=$((n+1)); curl -s -o /dev/null --max-time 20 ` + url + ` || echo "failed $n with $?"; done; echo "asked $n"; sleep 1000`
	client := e.busybox("client", script)
	client.Spec.Containers[0].Image = registry.Agnhost
	e.becomes(e.askers()[0], net.JoinHostPort(s.Spec.ClusterIP, "80"), false)
	e.create(client)
	pod := e.waitPod("client", time.Minute, running)
	for _, replicas := range []int32{6, 2, 5, 3} {
		e.scale(replicas)
	}
	e.exec(pod, "touch", "/stop")
	var log string
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && !strings.Contains(log, "asked"); time.Sleep(100 * time.Millisecond) {
		log = e.logs("client", &corev1.PodLogOptions{})
	}
	t.Log(strings.TrimSpace(log))
	if strings.Contains(log, "failed") || !strings.Contains(log, "asked") {
		t.Errorf("connections failed:\n%s", log)
	}
}

// TestServiceRulesComeBack: somebody empties nftables, and services work again.
func TestServiceRulesComeBack(t *testing.T) {
	e := setup(t)
	e.deploy(2)
	s := e.service("web")
	a := e.askers()[0]
	cluster := net.JoinHostPort(s.Spec.ClusterIP, "80")
	e.becomes(a, cluster, false)
	for _, machine := range e.c.Machines() {
		e.network(machine.Name, "nft", "flush", "ruleset")
	}
	start := time.Now()
	e.becomes(a, cluster, false)
	t.Logf("after %s", time.Since(start).Round(time.Millisecond))
}
