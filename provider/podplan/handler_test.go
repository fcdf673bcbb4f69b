package podplan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/vk-metal/vk-metal/internal/seccomp"
)

func buildWith(handler string, sc *corev1.SecurityContext) (Launch, error) {
	pod := basePod()
	pod.Spec.Containers[0].SecurityContext = sc
	in := PodInputs{Handler: handler, Seccomp: seccomp.HostOf("amd64", "6.1")}
	return Build(pod, Containers(pod)[0], Start{}, in, ContainerInputs{Image: Image{Cmd: []string{"/app"}}})
}

func TestStrictHandler(t *testing.T) {
	for _, handler := range []string{"", DefaultHandler} {
		plain, err := buildWith(handler, nil)
		if err != nil || plain.Unit.Strict || plain.Spec.NoNewPrivileges || len(plain.Spec.SeccompBPF) > 0 || len(plain.Spec.Capabilities) != len(defaultCapabilities) {
			t.Errorf("handler %q: %+v, %v", handler, plain, err)
		}
	}
	strict, err := buildWith(StrictHandler, nil)
	if err != nil {
		t.Fatal(err)
	}
	if !strict.Unit.Strict || !strict.Spec.NoNewPrivileges || len(strict.Spec.SeccompBPF) == 0 || !slices.Equal(strict.Spec.Capabilities, strictCapabilities) {
		t.Errorf("strict: unit %+v, no_new_privs %v, %d bytes of seccomp, capabilities %v", strict.Unit, strict.Spec.NoNewPrivileges, len(strict.Spec.SeccompBPF), strict.Spec.Capabilities)
	}
	more, err := buildWith(StrictHandler, &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"CHOWN"}, Drop: []corev1.Capability{"NET_BIND_SERVICE"}}})
	if err != nil || !slices.Equal(more.Spec.Capabilities, []string{"CAP_CHOWN"}) {
		t.Errorf("capabilities %v, %v", more.Spec.Capabilities, err)
	}
}

func TestStrictHandlerIsNotContradicted(t *testing.T) {
	yes := true
	for field, sc := range map[string]*corev1.SecurityContext{
		"privileged":               {Privileged: &yes},
		"allowPrivilegeEscalation": {AllowPrivilegeEscalation: &yes},
		"seccompProfile":           {SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeUnconfined}},
	} {
		_, err := buildWith(StrictHandler, sc)
		var config *ConfigError
		if !errors.As(err, &config) || !strings.Contains(config.Message, "securityContext."+field) {
			t.Errorf("%s: %v", field, err)
		}
		if _, err := buildWith("", sc); err != nil {
			t.Errorf("%s with the default handler: %v", field, err)
		}
	}
}

// TestOverheadIsInTheSlice: what a RuntimeClass adds to a pod is the pod's, not a container's.
func TestOverheadIsInTheSlice(t *testing.T) {
	pod := basePod()
	limits := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("64Mi")}
	pod.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: limits, Requests: limits}
	pod.Spec.Overhead = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("16Mi")}
	r := PodSlice(pod, 0).Resources
	if *r.MemoryMax != 80<<20 || *r.CPUShares != 1536 || r.CPUQuota.Milliseconds() != 1500 {
		t.Errorf("memory %d, shares %d, quota %s", *r.MemoryMax, *r.CPUShares, r.CPUQuota)
	}
	if c := ContainerResources(pod, Containers(pod)[0]); *c.MemoryMax != 64<<20 {
		t.Errorf("a container's memory is %d", *c.MemoryMax)
	}
}
