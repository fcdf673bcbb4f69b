package podplan

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestWhichAppArmorProfileHolds(t *testing.T) {
	profile := func(kind corev1.AppArmorProfileType, name string) *corev1.AppArmorProfile {
		p := &corev1.AppArmorProfile{Type: kind}
		if name != "" {
			p.LocalhostProfile = &name
		}
		return p
	}
	const none, def, local = corev1.AppArmorProfileTypeUnconfined, corev1.AppArmorProfileTypeRuntimeDefault, corev1.AppArmorProfileTypeLocalhost
	for _, test := range []struct {
		name           string
		pod, container *corev1.AppArmorProfile
		annotation     string
		privileged     bool
		want           AppArmor
	}{
		{"nothing said", nil, nil, "", false, AppArmor{def, "", false}},
		{"nothing said, privileged", nil, nil, "", true, AppArmor{none, "", false}},
		{"the pod's", profile(local, "p"), nil, "", false, AppArmor{local, "p", true}},
		{"the container's over the pod's", profile(local, "p"), profile(def, ""), "", false, AppArmor{def, "", true}},
		{"unconfined", profile(def, ""), profile(none, ""), "", false, AppArmor{none, "", true}},
		{"localhost holds for privileged ones too", nil, profile(local, "p"), "", true, AppArmor{local, "p", true}},
		{"annotation", nil, nil, "localhost/old", false, AppArmor{local, "old", true}},
		{"annotation, default", nil, nil, "runtime/default", false, AppArmor{def, "", true}},
		{"annotation, unconfined", nil, nil, "unconfined", false, AppArmor{none, "", true}},
		{"field over annotation", nil, profile(none, ""), "localhost/old", false, AppArmor{none, "", true}},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := basePod()
			if test.annotation != "" {
				pod.Annotations = map[string]string{annotationAppArmor + "app": test.annotation}
			}
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: test.pod}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{AppArmorProfile: test.container, Privileged: &test.privileged}
			if got, err := AppArmorOf(pod, Containers(pod)[0]); err != nil || got != test.want {
				t.Errorf("%+v, %v, want %+v", got, err, test.want)
			}
		})
	}
	pod := basePod()
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: profile(local, "")}
	var config *ConfigError
	if _, err := AppArmorOf(pod, Containers(pod)[0]); !errors.As(err, &config) || config.Reason != CreateContainerConfigError {
		t.Errorf("Localhost without a name: %v", err)
	}
}
