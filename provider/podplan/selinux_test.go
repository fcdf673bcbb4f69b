package podplan

import (
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func mcsHost() *PodSELinux {
	return &PodSELinux{Process: "system_u:system_r:container_t:s0", File: "system_u:object_r:container_file_t:s0", Level: "s0:c1,c2"}
}

func TestLabelsOf(t *testing.T) {
	const fieldOfPod, fieldOfContainer = "spec.securityContext.seLinuxOptions", "spec.containers{app}.securityContext.seLinuxOptions"
	type options = corev1.SELinuxOptions
	plain := &PodSELinux{Process: "system_u:system_r:container_t", File: "system_u:object_r:container_file_t", Level: "s0:c1,c2"}
	for _, tc := range []struct {
		name           string
		host           *PodSELinux
		pod, container *options
		privileged     bool
		want           Labels
		wrong          string
	}{
		{name: "no SELinux", pod: &options{Level: "nonsense"}},
		{name: "nothing said", host: mcsHost(), want: Labels{Process: "system_u:system_r:container_t:s0:c1,c2", File: "system_u:object_r:container_file_t:s0:c1,c2"}},
		{name: "policy without levels", host: plain, want: Labels{Process: "system_u:system_r:container_t", File: "system_u:object_r:container_file_t"}},
		{
			name: "everything said", host: mcsHost(), pod: &options{User: "u", Role: "r", Type: "t", Level: "s0:c7"},
			want: Labels{Process: "u:r:t:s0:c7", File: "u:object_r:container_file_t:s0:c7", Field: fieldOfPod},
		},
		{
			name: "the container's in place of the pod's", host: mcsHost(), pod: &options{User: "u", Level: "s0:c7"}, container: &options{Type: "t"},
			want: Labels{Process: "system_u:system_r:t:s0:c1,c2", File: "system_u:object_r:container_file_t:s0:c1,c2", Field: fieldOfContainer},
		},
		{
			name: "privileged", host: mcsHost(), privileged: true,
			want: Labels{Process: "system_u:system_r:spc_t:s0:c1,c2", File: "system_u:object_r:container_file_t:s0:c1,c2", Privileged: true},
		},
		{
			name: "privileged, and a type", host: mcsHost(), privileged: true, container: &options{Type: "t"},
			want: Labels{Process: "system_u:system_r:t:s0:c1,c2", File: "system_u:object_r:container_file_t:s0:c1,c2", Field: fieldOfContainer},
		},
		{name: "policy without containers", host: &PodSELinux{}},
		{name: "policy without containers, and a label", host: &PodSELinux{}, pod: &options{Type: "t"}, wrong: fieldOfPod},
		{name: "another part", host: mcsHost(), container: &options{Type: "t:s0"}, wrong: fieldOfContainer + ".type"},
		{name: "a mount option", host: mcsHost(), pod: &options{User: `u",lowerdir="/`}, wrong: fieldOfPod + ".user"},
		{name: "no level", host: mcsHost(), pod: &options{Level: "c1"}, wrong: fieldOfPod + ".level"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := basePod()
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxOptions: tc.pod}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SELinuxOptions: tc.container, Privileged: &tc.privileged}
			got, err := LabelsOf(pod, Containers(pod)[0], tc.host)
			if tc.wrong != "" {
				var config *ConfigError
				if !errors.As(err, &config) || config.Reason != CreateContainerError || !strings.HasPrefix(config.Message, tc.wrong+": ") {
					t.Errorf("refused by %v, want %s named", err, tc.wrong)
				}
				return
			}
			if err != nil || got != tc.want {
				t.Errorf("%+v, %v, want %+v", got, err, tc.want)
			}
		})
	}
}

func TestLabelTrials(t *testing.T) {
	pod := basePod()
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Role: "r", Level: "s0:c7"}}
	got := LabelTrials(pod, Containers(pod)[0], mcsHost())
	want := []Labels{
		{Process: "system_u:r:container_t:s0", Field: "spec.securityContext.seLinuxOptions.role"},
		{Process: "system_u:system_r:container_t:s0:c7", Field: "spec.securityContext.seLinuxOptions.level"},
	}
	if !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

// TestMountLabels: a volume can be mounted with one label only, and only with one that is known to
// those who schedule.
func TestMountLabels(t *testing.T) {
	level := func(l string) *corev1.SecurityContext {
		return &corev1.SecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Level: l}}
	}
	mounts := []corev1.VolumeMount{{Name: "data"}}
	recursive, mount := corev1.SELinuxChangePolicyRecursive, corev1.SELinuxChangePolicyMountOption
	for _, tc := range []struct {
		name   string
		first  *corev1.SecurityContext
		second *corev1.SecurityContext
		policy *corev1.PodSELinuxChangePolicy
		want   map[string]string
	}{
		{"none asked for", nil, nil, nil, map[string]string{}},
		{"one", level("s0:c7"), level("s0:c7"), nil, map[string]string{"data": "system_u:object_r:container_file_t:s0:c7"}},
		{"one, by mount option", level("s0:c7"), level("s0:c7"), &mount, map[string]string{"data": "system_u:object_r:container_file_t:s0:c7"}},
		{"one, recursive", level("s0:c7"), level("s0:c7"), &recursive, nil},
		{"two", level("s0:c7"), level("s0:c8"), nil, map[string]string{}},
		{"one and the pod's own", level("s0:c7"), nil, nil, map[string]string{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := basePod()
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxChangePolicy: tc.policy}
			pod.Spec.Containers = []corev1.Container{
				{Name: "a", SecurityContext: tc.first, VolumeMounts: mounts}, {Name: "b", SecurityContext: tc.second, VolumeMounts: mounts},
			}
			if got := MountLabels(pod, mcsHost()); !maps.Equal(got, tc.want) {
				t.Errorf("%v, want %v", got, tc.want)
			}
			if got := MountLabels(pod, nil); got != nil {
				t.Errorf("without SELinux: %v", got)
			}
		})
	}
}

// TestRelabels: what is the host's stays the host's.
func TestRelabels(t *testing.T) {
	pod := basePod()
	c := Containers(pod)[0]
	c.VolumeMounts = []corev1.VolumeMount{{Name: "own"}, {Name: "own", SubPath: "x"}, {Name: "hosts"}}
	in := PodInputs{
		Shm: "/shm", Hosts: "/hosts", SELinux: mcsHost(),
		Volumes: map[string]Volume{"own": {Path: "/own", Relabel: true}, "hosts": {Path: "/usr"}, "others": {Path: "/others", Relabel: true}},
	}
	cin := ContainerInputs{TerminationLog: "/log", Stdout: "/out"}
	want := []Relabel{{"/hosts", "l", false}, {"/log", "l", false}, {"/out", "l", false}, {"/shm", "l", false}, {"/own", "l", true}}
	if got := relabels(pod, c, in, cin, "l"); !slices.Equal(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := relabels(pod, c, in, cin, ""); got != nil {
		t.Errorf("without SELinux: %+v", got)
	}
	pod.Spec.HostIPC = true
	want = slices.DeleteFunc(want, func(r Relabel) bool { return r.Path == "/shm" })
	if got := relabels(pod, c, in, cin, "l"); !slices.Equal(got, want) {
		t.Errorf("with the host's IPC: %+v, want %+v", got, want)
	}
}
