package e2e

import (
	"context"
	"regexp"
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

// TestV2SELinux: containers have the labels of the policy, or of their pods, with a level that is the
// pod's alone; what they are to use has it, and the host's files keep theirs. A label that the policy
// does not know is refused.
func TestV2SELinux(t *testing.T) {
	e := setupV2(t)
	e.bootSELinux()
	if got := e.on(v2Node(), "sh", "-c", "cat /sys/fs/selinux/enforce; echo; cat /sys/module/apparmor/parameters/enabled; cat /proc/1/attr/current | tr -d '\\0'"); got != "0\nN\nsystem_u:system_r:init_t:s0" {
		t.Fatalf("SELinux of the machine: %q", got)
	}
	e.createLabelled()
	levels := map[string]string{}
	for _, name := range []string{"plain", "other", "users"} {
		levels[name] = e.levelOf(name)
	}
	if levels["plain"] == levels["other"] || levels["plain"] == levels["users"] || levels["other"] == levels["users"] {
		t.Errorf("levels of pods: %v", levels)
	}
	e.checkFileLabels("plain", levels["plain"])
	e.hasLabel("custom", "system_u:system_r:init_t:s0:c123,c456")
	e.checkFileLabels("custom", "s0:c123,c456")
	privileged := "system_u:system_r:spc_t:" // where the policy has it
	if _, err := e.machine(v2Node()).Run(e.Context(), "sh", "-c", "printf system_u:system_r:spc_t:s0 >/sys/fs/selinux/context"); err != nil {
		privileged = "system_u:system_r:init_t:s0"
	}
	if got := e.labelOf("privileged"); !strings.HasPrefix(got, privileged) {
		t.Errorf("privileged: %q, want %s", got, privileged)
	}
	e.checkRefusedLabels()
	e.checkLateCommand()

	e.on(v2Node(), "systemctl", "restart", "vk-metal.service")
	e.killMain(e.pod("plain"))
	e.waitPod("plain", v2Timeout, restarted(1))
	e.waitPod("plain", v2Timeout, running)
	e.hasLabel("plain", "system_u:system_r:container_t:"+levels["plain"])
	for _, name := range []string{"plain", "other", "users", "custom", "privileged"} {
		uid := string(e.pod(name).UID)
		e.remove(name, v2Timeout) // the next boot has nothing to wait for
		e.eventually(v2Timeout, func() string {
			return e.on(v2Node(), "sh", "-c", "ls /run/vk-metal/selinux-levels | grep "+uid+" || true")
		})
	}
}

const (
	labelledDir  = "/opt/labelled"
	labelInShell = "tr -d '\\0' </proc/self/attr/current; echo; "
)

// createLabelled creates pods with volumes, users of their own, privileges and labels.
func (e *env) createLabelled() {
	e.Helper()
	e.on(v2Node(), "sh", "-c", "mkdir -p "+labelledDir+" && touch "+labelledDir+"/old && chcon -R -t usr_t "+labelledDir)
	withVolumes := func(name string) *corev1.Pod {
		pod := e.onV2(name, "echo x >/data/x && echo x >/host/x && echo x >/x && echo x >/dev/shm/x && cat /data/x /host/x /x /etc/hosts >/dev/null && "+labelInShell+"exec sleep 36000")
		pod.Spec.Volumes = []corev1.Volume{
			{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}},
			{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: labelledDir}}},
		}
		pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}, {Name: "host", MountPath: "/host"}}
		return pod
	}
	custom := withVolumes("custom")
	custom.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Type: "init_t", Level: "s0:c123,c456"}}
	other := e.onV2("other", labelInShell+"exec sleep 36000")
	other.Spec.Containers[0].LivenessProbe = &corev1.Probe{ // fails once while the test runs, which is no reason to restart
		ProbeHandler:   corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"sleep", "7777"}}},
		TimeoutSeconds: 5, PeriodSeconds: 3600, FailureThreshold: 3,
	}
	privileged := e.onV2("privileged", labelInShell+"exec sleep 36000")
	privileged.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	users := e.onV2("users", labelInShell+"exec sleep 36000")
	users.Spec.HostUsers = ptr.To(false)
	for _, pod := range []*corev1.Pod{withVolumes("plain"), other, custom, privileged, users} {
		e.create(pod)
	}
}

// labelOf is the label of a pod's process, as it says itself; a command in it has the same.
func (e *env) labelOf(name string) string {
	e.Helper()
	pod := e.waitPod(name, v2Timeout, running)
	var label string
	e.eventually(v2Timeout, func() string {
		label = strings.TrimSpace(e.logs(name, &corev1.PodLogOptions{}))
		if label == "" {
			return name + " has logged no label"
		}
		return ""
	})
	if got := e.exec(pod, "cat", "/proc/self/attr/current"); strings.TrimRight(got, "\x00") != label {
		e.Errorf("%s has %q, a command in it %q", name, label, got)
	}
	return label
}

func (e *env) hasLabel(name, want string) {
	e.Helper()
	if got := e.labelOf(name); got != want {
		e.Errorf("%s has the label %q, want %q", name, got, want)
	}
}

// levelOf is the level of a pod that asks for none.
func (e *env) levelOf(name string) string {
	e.Helper()
	label := e.labelOf(name)
	level, ok := strings.CutPrefix(label, "system_u:system_r:container_t:")
	if !ok || !regexp.MustCompile(`^s0:c\d+,c\d+$`).MatchString(level) {
		e.Errorf("%s has the label %q, want container_t with two categories", name, label)
	}
	return level
}

// checkFileLabels looks at a container's files from the host, whose tools know labels.
func (e *env) checkFileLabels(name, level string) {
	e.Helper()
	pod := e.pod(name)
	var root string
	for _, pid := range e.podUnits(pod) {
		root = "/proc/" + pid + "/root"
	}
	for _, file := range []string{"/x", "/bin", "/data", "/data/x", "/dev/shm/x", "/dev/null", "/dev/pts", "/etc/hosts", "/etc/resolv.conf", "/dev/termination-log"} {
		if got, want := e.on(v2Node(), "stat", "-c", "%C", root+file), "system_u:object_r:container_file_t:"+level+"\n"; got != want {
			e.Errorf("%s of %s has the label %q, want %q", file, name, got, want)
		}
	}
	for _, file := range []string{"", "/old"} {
		if got := e.on(v2Node(), "stat", "-c", "%C", labelledDir+file); !strings.Contains(got, ":usr_t:s0\n") {
			e.Errorf("the host's %s has the label %q", labelledDir+file, got)
		}
	}
}

// checkLateCommand: a command that takes too long is ended, though the kernel does not end those whose
// label has changed with their parent.
func (e *env) checkLateCommand() {
	e.Helper()
	e.waitMessage(e.pod("other"), "Unhealthy", "Liveness probe")
	e.eventually(v2Timeout, func() string {
		return e.on(v2Node(), "sh", "-c", "grep -lsazx '777[7]' /proc/[0-9]*/cmdline || true")
	})
}

// checkRefusedLabels has pods that ask for what cannot be had.
func (e *env) checkRefusedLabels() {
	e.Helper()
	refused := e.onV2("refused", "")
	refused.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{SELinuxOptions: &corev1.SELinuxOptions{Type: "no_such_t", Level: "s0:c1,c2"}}
	armor := e.onV2("armor", "")
	armor.Spec.SecurityContext = &corev1.PodSecurityContext{AppArmorProfile: &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}}
	for _, pod := range []*corev1.Pod{refused, armor} {
		e.create(pod)
	}
	const field = "spec.containers{main}.securityContext.seLinuxOptions.type"
	told := e.waitPod("refused", v2Timeout, waiting("CreateContainerError"))
	if message := told.Status.ContainerStatuses[0].State.Waiting.Message; !strings.HasPrefix(message, field) {
		e.Errorf("refused waits: %q, want %s", message, field)
	}
	e.waitMessage(told, "Failed", field)
	if s := e.waitPod("armor", v2Timeout, phase(corev1.PodFailed)).Status; s.Reason != "AppArmor" {
		e.Errorf("a pod with AppArmor's profile: %s: %s", s.Reason, s.Message)
	}
	for _, name := range []string{"refused", "armor"} {
		e.remove(name, v2Timeout)
	}
}
