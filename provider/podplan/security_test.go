package podplan

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestUsersThatMayBeRoot: the messages are a kubelet's; people and tools look for them.
func TestUsersThatMayBeRoot(t *testing.T) {
	yes, root, other := true, int64(0), int64(7)
	for _, test := range []struct {
		name, image string
		uid         *int64
		want        string
	}{
		{"image's number", "1000:0", nil, ""},
		{"pod's number", "root", &other, ""},
		{"pod's root", "1000", &root, `container's runAsUser breaks non-root policy (pod: "p_ns(u-1)", container: app)`},
		{"no user", "", nil, `container has runAsNonRoot and image will run as root (pod: "p_ns(u-1)", container: app)`},
		{"image's root", "0:1000", nil, `container has runAsNonRoot and image will run as root (pod: "p_ns(u-1)", container: app)`},
		{"a name", "web:web", nil, `container has runAsNonRoot and image has non-numeric user (web), cannot verify user is non-root (pod: "p_ns(u-1)", container: app)`},
	} {
		pod := basePod()
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: &yes, RunAsUser: test.uid}
		_, err := Build(pod, Containers(pod)[0], Start{Container: "app"}, PodInputs{}, ContainerInputs{Image: Image{Cmd: []string{"/app"}, User: test.image}})
		var config *ConfigError
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &config) || config.Message != test.want || config.Reason != CreateContainerConfigError) {
			t.Errorf("%s: %v, want %q", test.name, err, test.want)
		}
	}
}

func TestUnknownCapabilities(t *testing.T) {
	for _, test := range []struct {
		add, drop []corev1.Capability
		want      string
	}{
		{[]corev1.Capability{"NET_ADMIN", "CAP_BPF", "sys_time", "ALL"}, nil, ""},
		{nil, []corev1.Capability{"NO_SUCH", "ALL"}, ""},
		{[]corev1.Capability{"NET_ADMIN", "NO_SUCH"}, nil, `unknown capability "CAP_NO_SUCH" in securityContext.capabilities.add`},
		{[]corev1.Capability{""}, nil, `unknown capability "CAP_" in securityContext.capabilities.add`},
	} {
		pod := basePod()
		pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: test.add, Drop: test.drop}}
		_, err := Build(pod, Containers(pod)[0], Start{Container: "app"}, PodInputs{}, ContainerInputs{Image: Image{Cmd: []string{"/app"}}})
		var config *ConfigError
		if test.want == "" && err != nil || test.want != "" && (!errors.As(err, &config) || config.Message != test.want || config.Reason != CreateContainerError) {
			t.Errorf("add %v, drop %v: %v, want %q", test.add, test.drop, err, test.want)
		}
	}
}
