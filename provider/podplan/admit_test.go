package podplan

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func asks(cpu, memory string) corev1.ResourceRequirements {
	list := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory)}
	return corev1.ResourceRequirements{Requests: list, Limits: list}
}

func TestAdmissionIsAKubelets(t *testing.T) {
	other := basePod()
	other.Spec.Containers[0].Resources = asks("1", "1Gi")
	other.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	place := Place{
		Node: &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"disk": "ssd"}}},
		Allocatable: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi"), corev1.ResourcePods: resource.MustParse("3"),
		},
		Others: []*corev1.Pod{other},
	}
	port := func(ip string, protocol corev1.Protocol) func(*corev1.Pod, *Place) {
		return func(p *corev1.Pod, _ *Place) {
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 1, HostPort: 8080, HostIP: ip, Protocol: protocol}}
		}
	}
	for name, tc := range map[string]struct {
		change          func(*corev1.Pod, *Place)
		reason, message string
	}{
		"a plain pod": {func(*corev1.Pod, *Place) {}, "", ""},
		"too much CPU": {
			func(p *corev1.Pod, _ *Place) { p.Spec.Containers[0].Resources = asks("1500m", "1Mi") },
			"OutOfcpu", "Node didn't have enough resource: cpu, requested: 1500, used: 1000, capacity: 2000",
		},
		"too much memory": {
			func(p *corev1.Pod, _ *Place) { p.Spec.Containers[0].Resources = asks("1", "4Gi") },
			"OutOfmemory", "Node didn't have enough resource: memory, requested: 4294967296, used: 1073741824, capacity: 4294967296",
		},
		"just enough": {func(p *corev1.Pod, _ *Place) { p.Spec.Containers[0].Resources = asks("1", "3Gi") }, "", ""},
		"one pod too many": {
			func(_ *corev1.Pod, at *Place) { at.Others = []*corev1.Pod{basePod(), basePod(), basePod()} },
			"OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 3, capacity: 3",
		},
		"a resource that the node does not have": {func(p *corev1.Pod, _ *Place) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"example.com/gpu": resource.MustParse("1")}
		}, "", ""},
		"another label":   {func(p *corev1.Pod, _ *Place) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }, "NodeAffinity", "Predicate NodeAffinity failed"},
		"the label":       {func(p *corev1.Pod, _ *Place) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, "", ""},
		"a taken port":    {port("", ""), "NodePorts", "Predicate NodePorts failed"},
		"it, of one IP":   {port("192.0.2.1", "TCP"), "NodePorts", "Predicate NodePorts failed"},
		"it, for another": {port("", "UDP"), "", ""},
		"an untolerated NoExecute": {func(_ *corev1.Pod, at *Place) {
			at.Node.Spec.Taints = []corev1.Taint{{Key: "out", Effect: corev1.TaintEffectNoExecute}}
		}, "TaintToleration", "Predicate TaintToleration failed"},
		"a tolerated NoExecute": {func(p *corev1.Pod, at *Place) {
			at.Node.Spec.Taints = []corev1.Taint{{Key: "out", Value: "x", Effect: corev1.TaintEffectNoExecute}}
			p.Spec.Tolerations = []corev1.Toleration{{Key: "out", Value: "x"}}
		}, "", ""},
		"an untolerated NoSchedule": {func(_ *corev1.Pod, at *Place) {
			at.Node.Spec.Taints = []corev1.Taint{{Key: "out", Effect: corev1.TaintEffectNoSchedule}}
		}, "", ""},
		"nothing known of the node": {func(p *corev1.Pod, at *Place) {
			p.Spec.Containers[0].Resources, *at = asks("100", "1Ti"), Place{}
		}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			pod, at := basePod(), place
			at.Node = place.Node.DeepCopy()
			tc.change(pod, &at)
			got := Admit(pod, at)
			switch {
			case tc.reason == "" && got != nil:
				t.Errorf("refused: %+v", got)
			case tc.reason != "" && (got == nil || got.Admission != tc.reason || got.Reason != tc.message):
				t.Errorf("got %+v, want %s: %s", got, tc.reason, tc.message)
			}
		})
	}
}

func TestResizeInPlaceOrByRestart(t *testing.T) {
	small, large := asks("100m", "64Mi"), asks("200m", "64Mi")
	byRestart := []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceCPU, RestartPolicy: corev1.RestartContainer}}
	otherByRestart := []corev1.ContainerResizePolicy{{ResourceName: corev1.ResourceMemory, RestartPolicy: corev1.RestartContainer}}
	for name, tc := range map[string]struct {
		runsWith     *corev1.ResourceRequirements
		policy       []corev1.ContainerResizePolicy
		resize, kill int
	}{
		"the same":                     {runsWith: &large},
		"not known":                    {},
		"in place":                     {runsWith: &small, resize: 1},
		"in place, the other restarts": {runsWith: &small, policy: otherByRestart, resize: 1},
		"by restart":                   {runsWith: &small, policy: byRestart, kill: 1},
	} {
		t.Run(name, func(t *testing.T) {
			pod := basePod()
			pod.Spec.Containers[0].Resources, pod.Spec.Containers[0].ResizePolicy = large, tc.policy
			attempt := Attempt{Phase: Running, Started: true, Ready: true, Resources: tc.runsWith}
			d := Decide(pod, Observed{Attempts: map[string][]Attempt{"app": {attempt}}})
			if len(d.Resize) != tc.resize || len(d.Kill) != tc.kill {
				t.Fatalf("decision %+v", d)
			}
			if tc.kill == 0 {
				return
			}
			attempt.Phase, attempt.Killing, attempt.ExitCode, attempt.Backoff = Ended, true, 143, BackoffMax
			if d := Decide(pod, Observed{Attempts: map[string][]Attempt{"app": {attempt}}}); len(d.Start) != 1 || d.Start[0].Attempt != 1 {
				t.Errorf("not started anew at once: %+v", d)
			}
		})
	}
}

func TestAdmitResize(t *testing.T) {
	other := basePod()
	other.Spec.Containers[0].Resources = asks("1", "1Gi")
	place := Place{Allocatable: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2")}, Others: []*corev1.Pod{other}}
	for cpu, want := range map[string]string{"1": "", "1500m": corev1.PodReasonDeferred, "3": corev1.PodReasonInfeasible} {
		pod := basePod()
		pod.Spec.Containers[0].Resources = asks(cpu, "1Gi")
		if got, message := AdmitResize(pod, place); got != want {
			t.Errorf("%s CPU: %s (%s), want %s", cpu, got, message, want)
		}
	}
}

func TestHostSecurityModules(t *testing.T) {
	profile := func(kind corev1.AppArmorProfileType) *corev1.Pod {
		pod := basePod()
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: kind}}
		return pod
	}
	labelled := basePod()
	labelled.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Level: "s0:c1"}}
	for name, tc := range map[string]struct {
		pod       *corev1.Pod
		policy    Policy
		refused   bool
		admission string
	}{
		"AppArmor's default, without AppArmor": {profile(corev1.AppArmorProfileTypeRuntimeDefault), Policy{}, true, "AppArmor"},
		"no profile, without AppArmor":         {profile(corev1.AppArmorProfileTypeUnconfined), Policy{}, false, ""},
		"AppArmor's default, with AppArmor":    {profile(corev1.AppArmorProfileTypeRuntimeDefault), Policy{AppArmor: true}, false, ""},
		"a label":                              {labelled, Policy{}, false, ""},
	} {
		got := Refusals(tc.pod, tc.policy)
		if len(got) > 0 != tc.refused || tc.refused && got[0].Admission != tc.admission {
			t.Errorf("%s: %+v", name, got)
		}
	}
}
