package podplan

import (
	"bytes"
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/seccomp"
)

func seccompOf(kind corev1.SeccompProfileType, name string) *corev1.SeccompProfile {
	p := &corev1.SeccompProfile{Type: kind}
	if name != "" {
		p.LocalhostProfile = &name
	}
	return p
}

func TestWhichSeccompProfileHolds(t *testing.T) {
	host := seccomp.HostOf("amd64", "6.1.0")
	local, err := seccomp.Parse([]byte(`{"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}`))
	if err != nil {
		t.Fatal(err)
	}
	caps := capabilities(nil)
	programs := map[string][]byte{"": nil}
	for name, p := range map[string]*seccomp.Profile{"default": seccomp.Default(), "local": local} {
		if programs[name], err = p.Compile(caps, host); err != nil {
			t.Fatal(err)
		}
	}
	yes := true
	for _, test := range []struct {
		name           string
		pod, container *corev1.SeccompProfile
		byDefault      bool
		privileged     bool
		want           string
	}{
		{"none", nil, nil, false, false, ""},
		{"the node's default", nil, nil, true, false, "default"},
		{"the pod's", seccompOf(corev1.SeccompProfileTypeRuntimeDefault, ""), nil, false, false, "default"},
		{"the container's", nil, seccompOf(corev1.SeccompProfileTypeRuntimeDefault, ""), false, false, "default"},
		{"the container's over the pod's", seccompOf(corev1.SeccompProfileTypeRuntimeDefault, ""), seccompOf(corev1.SeccompProfileTypeUnconfined, ""), true, false, ""},
		{"localhost", seccompOf(corev1.SeccompProfileTypeLocalhost, "a/b.json"), nil, true, false, "local"},
		{"privileged", seccompOf(corev1.SeccompProfileTypeLocalhost, "a/b.json"), nil, true, true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := basePod()
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: test.pod}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SeccompProfile: test.container}
			if test.privileged {
				pod.Spec.Containers[0].SecurityContext.Privileged = &yes
			}
			launch, err := Build(pod, Containers(pod)[0], Start{Container: "app"},
				PodInputs{Seccomp: host, SeccompDefault: test.byDefault}, ContainerInputs{Image: Image{Cmd: []string{"/app"}}, Seccomp: local})
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(launch.Spec.SeccompBPF, programs[test.want]) {
				t.Errorf("the program has %d bytes, want that of %q", len(launch.Spec.SeccompBPF), test.want)
			}
			if wantFlags := map[string]uint32{"": 0, "default": 4, "local": 2}[test.want]; launch.Spec.SeccompFlags != wantFlags {
				t.Errorf("flags %d, want %d", launch.Spec.SeccompFlags, wantFlags)
			}
		})
	}
}

func TestLocalSeccompStaysInItsDirectory(t *testing.T) {
	for name, want := range map[string]string{
		"audit.json": "audit.json", "profiles/./audit.json": "profiles/audit.json", "": "!", "/etc/shadow": "!", "../x": "!", "a/../../x": "!", "a\x00b": "!",
	} {
		pod := basePod()
		pod.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: seccompOf(corev1.SeccompProfileTypeLocalhost, name)}
		got, err := LocalSeccomp(pod, Containers(pod)[0])
		var config *ConfigError
		if want == "!" && (!errors.As(err, &config) || config.Reason != CreateContainerConfigError) || want != "!" && (err != nil || got != want) {
			t.Errorf("%q: %q, %v, want %q", name, got, err, want)
		}
	}
}
