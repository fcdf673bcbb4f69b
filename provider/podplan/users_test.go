package podplan

import (
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// ownUsers is a pod with hostUsers: false.
func ownUsers() *corev1.Pod {
	pod, no := basePod(), false
	pod.Spec.HostUsers = &no
	return pod
}

func TestUserNamespaceOfAPod(t *testing.T) {
	pod := ownUsers()
	if got := Refusals(pod, Policy{}); len(got) != 0 {
		t.Fatalf("refused: %v", got)
	}
	in := PodInputs{NetNS: "/net", IPC: "/ipc", Users: &PodUsers{Path: "/user", First: 1 << 20, Size: 1 << 16}}
	cin := ContainerInputs{Image: Image{Cmd: []string{"/app"}}}
	launch, err := Build(pod, Containers(pod)[0], Start{}, in, cin)
	if err != nil {
		t.Fatal(err)
	}
	ns := launch.Spec.Namespaces
	if ns.User == nil || *ns.User != *in.Users || ns.Net != "/net" || ns.IPC != "/ipc" {
		t.Errorf("namespaces %+v", ns)
	}
	if pause := BuildPause(pod, Start{}, in); pause.Spec.Namespaces.User == nil {
		t.Error("the pause process has the host's users")
	}
	if launch, err := Build(basePod(), Containers(pod)[0], Start{}, PodInputs{}, cin); err != nil || launch.Spec.Namespaces.User != nil {
		t.Errorf("a pod that does not ask for it: %+v, %v", launch.Spec.Namespaces.User, err)
	}
}

// TestNeverWithTheHostsUsers: what asks for a user namespace does not run without one.
func TestNeverWithTheHostsUsers(t *testing.T) {
	pod := ownUsers()
	users := &PodUsers{Path: "/user"}
	for name, test := range map[string]struct {
		in    PodInputs
		image Image
	}{
		"none":       {PodInputs{}, Image{Cmd: []string{"/app"}}},
		"host image": {PodInputs{Users: users}, Image{Cmd: []string{"/app"}, Host: true, HostPath: "/"}},
	} {
		_, err := Build(pod, Containers(pod)[0], Start{}, test.in, ContainerInputs{Image: test.image})
		var config *ConfigError
		if !errors.As(err, &config) || config.Reason != CreateContainerError {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestUserNamespaceRefusals(t *testing.T) {
	both := corev1.MountPropagationBidirectional
	unmaskedMount := corev1.UnmaskedProcMount
	for field, change := range map[string]func(*corev1.PodSpec){
		"spec.hostNetwork": func(s *corev1.PodSpec) { s.HostNetwork = true },
		"spec.hostPID":     func(s *corev1.PodSpec) { s.HostPID = true },
		"spec.hostIPC":     func(s *corev1.PodSpec) { s.HostIPC = true },
		"spec.containers{app}.volumeDevices": func(s *corev1.PodSpec) {
			s.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "v", DevicePath: "/dev/v"}}
		},
		"spec.containers{app}.volumeMounts{v}.mountPropagation": func(s *corev1.PodSpec) {
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/v", MountPropagation: &both}}
		},
		"spec.containers{app}.securityContext.procMount": func(s *corev1.PodSpec) {
			s.HostUsers = nil
			s.Containers[0].SecurityContext = &corev1.SecurityContext{ProcMount: &unmaskedMount}
		},
	} {
		pod := ownUsers()
		change(&pod.Spec)
		if got := Refusals(pod, Policy{}); len(got) != 1 || got[0].Field != field {
			t.Errorf("%s: %v", field, got)
		}
	}
	const why = "the kernel is too old"
	if got := Refusals(ownUsers(), Policy{NoUserNamespaces: why}); len(got) != 1 || got[0].String() != "spec.hostUsers: "+why {
		t.Errorf("on a host without: %v", got)
	}
	if got := Refusals(basePod(), Policy{NoUserNamespaces: why}); len(got) != 0 {
		t.Errorf("a pod that does not need one on a host without: %v", got)
	}
}

func TestUnmaskedProc(t *testing.T) {
	pod, mount := ownUsers(), corev1.UnmaskedProcMount
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{ProcMount: &mount}
	if got := Refusals(pod, Policy{}); len(got) != 0 {
		t.Fatalf("refused: %v", got)
	}
	launch, err := Build(pod, Containers(pod)[0], Start{}, PodInputs{Users: &PodUsers{}}, ContainerInputs{Image: Image{Cmd: []string{"/app"}}})
	if err != nil {
		t.Fatal(err)
	}
	for _, hidden := range slices.Concat(launch.Spec.MaskedPaths, launch.Spec.ReadonlyPaths) {
		if strings.HasPrefix(hidden, "/proc") {
			t.Errorf("%s is hidden", hidden)
		}
	}
}
