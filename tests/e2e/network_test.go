package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/workload"
)

// deploy makes the Deployment "web" and waits until it has rolled out.
func (e *env) deploy(replicas int32, change ...func(*corev1.PodSpec)) {
	e.Helper()
	e.deployWithin(2*time.Minute, replicas, change...)
}

func (e *env) deployWithin(timeout time.Duration, replicas int32, change ...func(*corev1.PodSpec)) {
	e.Helper()
	ctx, cancel := context.WithTimeout(e.Context(), timeout)
	defer cancel()
	web := workload.Web(e.ns, "web", replicas)
	for _, f := range change {
		f(&web.Spec.Template.Spec)
	}
	if err := workload.Apply(ctx, e.c.Client, web); err != nil {
		e.Fatal(err)
	}
	if err := workload.WaitRolledOut(ctx, e.c.Client, e.ns, "web"); err != nil {
		e.Fatal(err)
	}
}

// web lists the pods of the Deployment.
func (e *env) web() []corev1.Pod {
	e.Helper()
	pods, err := workload.Pods(e.Context(), e.c.Client, e.ns, "web")
	if err != nil {
		e.Fatal(err)
	}
	return pods
}

// checkMesh lets all pods and all machines ask all pods.
func (e *env) checkMesh() {
	e.Helper()
	hosts := map[string]workload.Host{}
	for _, machine := range e.c.Machines() {
		hosts[machine.Name] = machine
	}
	// Nodes hear of one another's pods, and of one another, at moments of their own.
	e.eventually(time.Minute, func() string {
		matrix, err := workload.Mesh(e.Context(), e.c.Config, e.web(), hosts)
		if err != nil {
			return err.Error()
		}
		if failures := matrix.Failures(); len(failures) > 0 {
			return fmt.Sprintf("%d questions without a right answer:\n%s\n%s", len(failures), strings.Join(failures, "\n"), matrix)
		}
		return ""
	})
}

func TestEveryPodReachesEveryPod(t *testing.T) {
	e := setup(t)
	e.deploy(6)
	nodes := map[string]int{}
	for _, pod := range e.web() {
		nodes[pod.Spec.NodeName]++
	}
	if len(nodes) < 2 {
		t.Errorf("pods are on %v", nodes)
	}
	e.checkMesh()
}

// TestPodsSeePodAddresses: pods see one another's own addresses, not the nodes'.
func TestPodsSeePodAddresses(t *testing.T) {
	e := setup(t)
	e.deploy(2)
	pods := e.web()
	for i := range pods {
		other := pods[1-i]
		got := e.exec(&pods[i], "curl", "-s", "--max-time", "20", "http://"+other.Status.PodIP+":8080/clientip")
		client, _, _ := strings.Cut(got, ":")
		if client != pods[i].Status.PodIP {
			t.Errorf("%s asks %s, which sees %q instead of %s", pods[i].Name, other.Name, got, pods[i].Status.PodIP)
		}
	}
}
