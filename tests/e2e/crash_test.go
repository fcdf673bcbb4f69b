package e2e

import (
	"context"
	"fmt"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// TestAgentGoesAndComes restarts and kills the agent of one node under load: no
// process of a pod notices, and what happened meanwhile is told afterwards. It prints how
// long statuses were wrong: the aim is 2 s, an idle host takes 0.4 to 1.2 s.
func TestAgentGoesAndComes(t *testing.T) {
	e := setup(t)
	e.deploy(6)
	node := e.web()[0].Spec.NodeName
	l := e.startLoad(2)
	cases := []struct {
		name string
		act  []string
	}{
		{"restart", []string{"systemctl", "restart", "vk-metal.service"}},
		{"kill -9", []string{"systemctl", "kill", "--signal=KILL", "--kill-who=main", "vk-metal.service"}},
		{"log writer, kill -9", []string{"systemctl", "kill", "--signal=KILL", "--kill-who=main", "vk-metal-log.service"}},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := e.in(t)
			// A victim of its own: the first crash of a container has no back-off.
			pod := e.busybox(fmt.Sprintf("victim-%d", i), "exec sleep 3600")
			pod.Spec.NodeName = node
			e.create(pod)
			victim := e.waitPod(pod.Name, podTimeout, running)
			before := e.units(node)
			start := time.Now()
			e.on(node, c.act...)
			e.killMain(victim)
			e.waitPod(victim.Name, time.Minute, restarted(1))
			t.Logf("statuses right %s after %s", time.Since(start).Round(time.Millisecond), c.name)
			maps.DeleteFunc(before, func(unit, _ string) bool { return strings.Contains(unit, string(victim.UID)) })
			after := e.units(node)
			for unit, pid := range before {
				if after[unit] != pid {
					t.Errorf("%s: process %s became %q", unit, pid, after[unit])
				}
			}
		})
	}
	requests, failures := l.end()
	t.Logf("%d requests, %d failed", requests, len(failures))
	for _, failure := range failures {
		t.Errorf("request failed: %s", failure)
	}
}

// TestMachineGoesAndComes reboots a machine and cuts its power: its pods come back by
// themselves, the same pods, with their restarts counted.
func TestMachineGoesAndComes(t *testing.T) {
	e := setup(t)
	e.deploy(4)
	node := e.web()[0].Spec.NodeName
	machine := e.machine(node)
	cases := []struct {
		name string
		act  func() error
	}{
		{"reboot", func() error { return machine.Reboot(e.Context()) }},
		{"power cut", func() error { return powerCycle(e.Context(), machine) }},
	}
	for i, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			e := e.in(t)
			start := time.Now()
			if err := c.act(); err != nil {
				t.Fatal(err)
			}
			if err := machine.WaitBooted(e.Context()); err != nil {
				t.Fatal(err)
			}
			booted := time.Since(start)
			for _, pod := range e.web() {
				if pod.Spec.NodeName == node {
					e.waitPod(pod.Name, 2*time.Minute, restarted(int32(i+1)))
				}
			}
			took := time.Since(start) - booted
			t.Logf("booted after %s, all pods ready %s later", booted.Round(100*time.Millisecond), took.Round(100*time.Millisecond))
			if pods := e.web(); len(pods) != 4 {
				t.Errorf("%d pods: some were replaced", len(pods))
			}
			e.checkMesh()
		})
	}
}

func powerCycle(ctx context.Context, machine *rig.Machine) error {
	if err := machine.PowerCut(ctx); err != nil {
		return err
	}
	return machine.Start(ctx)
}

// outage is how long the API server stays away: VK_METAL_E2E_OUTAGE=5m is the whole test.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("VK_METAL_E2E_OUTAGE")
	if text == "" {
		return 30 * time.Second
	}
	length, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return length
}

// watchBack is how late a node may hear of new pods after a long outage, as a kubelet:
// client-go's reflectors ask again every 30 to 60 seconds then.
const watchBack = time.Minute

// TestAPIServerGoesAndComes: pods run on, a container that crashes is restarted by the
// agent alone, and the API is told afterwards.
func TestAPIServerGoesAndComes(t *testing.T) {
	e := setupFor(t, outage(t)+testTime)
	e.create(e.busybox("steady", "exec sleep 3600"))
	e.create(e.busybox("crashes", "echo start; exec sleep 3600"))
	steady := e.waitPod("steady", podTimeout, running)
	crashes := e.waitPod("crashes", podTimeout, running)
	before := e.podUnits(steady)
	start := time.Now()
	e.stopAPIServers(e.allAPIServers()...)
	first := e.podUnits(crashes)
	e.killMain(crashes)
	e.waitOtherUnit(crashes, first, time.Minute)
	time.Sleep(time.Until(start.Add(outage(t)))) // the length of the outage is what is tested
	if after := e.podUnits(steady); !maps.Equal(before, after) {
		t.Errorf("units %v became %v", before, after)
	}
	e.startAPIServers(e.allAPIServers()...)
	back := time.Now()
	e.waitPod("crashes", 2*time.Minute, restarted(1))
	t.Logf("statuses right %s after an outage of %s", time.Since(back).Round(time.Millisecond), back.Sub(start).Round(time.Second))
	if pod := e.pod("steady"); pod.Status.ContainerStatuses[0].RestartCount != 0 || pod.UID != steady.UID {
		t.Errorf("the steady pod changed:\n%s", describe(pod))
	}
	e.create(e.busybox("later", "exec sleep 3600"))
	e.waitPod("later", watchBack+podTimeout, running)
	if err := controlplane.WaitServiceAccount(e.Context(), e.c.Client, e.ns); err != nil {
		t.Error(err)
	}
}

// waitOtherUnit waits on the machine, not in the API, for another attempt.
func (e *env) waitOtherUnit(pod *corev1.Pod, first map[string]string, timeout time.Duration) {
	e.Helper()
	deadline := time.Now().Add(timeout)
	for time.Now().Before(deadline) {
		for unit := range e.podUnits(pod) {
			if _, old := first[unit]; !old {
				return
			}
		}
		time.Sleep(200 * time.Millisecond)
	}
	e.Errorf("pod %s was not restarted in %s; units %v", pod.Name, timeout, e.podUnits(pod))
}
