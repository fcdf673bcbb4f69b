package e2e

import (
	"context"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"
)

// bootSELinux boots the virtual machine with SELinux in AppArmor's place, until the test ends. The
// policy is Debian's, which only reports: it knows nothing of a node's programs.
func (e *env) bootSELinux() {
	e.Helper()
	machine := e.machine(v2Node())
	boot := func(ctx context.Context, args string) error {
		if err := machine.SetKernelArgs(args); err != nil {
			return err
		}
		if err := machine.Reboot(ctx); err != nil {
			return err
		}
		return machine.WaitBooted(ctx)
	}
	e.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*v2Timeout)
		defer cancel()
		if err := boot(ctx, ""); err != nil {
			e.Errorf("boot without SELinux: %v", err)
		}
	})
	if err := boot(e.Context(), "security=selinux enforcing=0"); err != nil {
		e.Fatal(err)
	}
}

// TestV2SELinux: on a kernel with SELinux pods that name no label run as elsewhere; those that name
// one are told that this is not there, and are not run without it.
func TestV2SELinux(t *testing.T) {
	e := setupV2(t)
	e.bootSELinux()
	if got := e.on(v2Node(), "sh", "-c", "cat /sys/fs/selinux/enforce; echo; cat /sys/module/apparmor/parameters/enabled; cat /proc/1/attr/current | tr -d '\\0'"); got != "0\nN\nsystem_u:system_r:init_t:s0" {
		t.Fatalf("SELinux of the machine: %q", got)
	}
	label := &corev1.SELinuxOptions{Level: "s0:c123,c456"}
	pod := e.onV2("of-pod", "")
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxOptions: label}
	e.create(pod)
	pod = e.onV2("of-container", "")
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Type: "no_such_t"}}
	e.create(pod)
	pod = e.onV2("armor", "")
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}}
	e.create(pod)
	e.runsUnlabelled()

	for name, field := range map[string]string{
		"of-pod": "spec.securityContext.seLinuxOptions", "of-container": "spec.containers{main}.securityContext.seLinuxOptions",
	} {
		told := e.waitPod(name, v2Timeout, waiting("UnsupportedPodSpec"))
		if message := told.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(message, field) {
			t.Errorf("%s waits: %q, want %s", name, message, field)
		}
		e.waitMessage(told, "UnsupportedPodSpec", field)
		e.remove(name, v2Timeout)
	}
	if s := e.waitPod("armor", v2Timeout, phase(corev1.PodFailed)).Status; s.Reason != "AppArmor" {
		t.Errorf("a pod with AppArmor's profile: %s: %s", s.Reason, s.Message)
	}
	for _, name := range []string{"armor", "plain", "privileged", "users"} {
		e.remove(name, v2Timeout) // the next boot has nothing to wait for
	}
}

// runsUnlabelled runs pods that name no label, with volumes, users of their own and privileges. They
// have systemd's own label, and nothing on the host gets another one.
func (e *env) runsUnlabelled() {
	e.Helper()
	const current, label = "tr -d '\\0' </proc/self/attr/current; echo; ", "system_u:system_r:init_t:s0"
	const dir = "/opt/labelled"
	e.on(v2Node(), "sh", "-c", "mkdir -p "+dir+" && chcon -t usr_t "+dir)
	plain := e.onV2("plain", current+"echo x >/data/x && echo x >/host/x && cat /data/x /host/x; exec sleep 36000")
	plain.Spec.Volumes = []corev1.Volume{
		{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: dir}}},
	}
	plain.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "host", MountPath: "/host"}}
	privileged := e.onV2("privileged", current+"exec sleep 36000")
	privileged.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	users := e.onV2("users", current+"exec sleep 36000")
	users.Spec.HostUsers = ptr.To(false)
	for _, pod := range []*corev1.Pod{plain, privileged, users} {
		e.create(pod)
	}
	for name, log := range map[string]string{"plain": label + "\nx\nx\n", "privileged": label + "\n", "users": label + "\n"} {
		pod := e.waitPod(name, v2Timeout, running)
		e.waitLog(name, log)
		if got := e.exec(pod, "cat", "/proc/self/attr/current"); got != label+"\x00" {
			e.Errorf("%s: a command in it has %q", name, got)
		}
	}
	if got := e.on(v2Node(), "stat", "-c", "%C", dir); got != "system_u:object_r:usr_t:s0\n" {
		e.Errorf("the host's directory has %q", got)
	}
}
