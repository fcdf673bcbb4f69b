package systemd_test

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// isolation is what docs/isolation.md says of a container that asks for nothing, row by
// row: a script that runs in one, and what it has to print.
var isolation = []struct{ row, script, want string }{
	{
		"capabilities", `grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\t' | tr '\n' ' '`,
		"CapInh:0000000000000000 CapPrm:00000000a80425fb CapEff:00000000a80425fb CapBnd:00000000a80425fb CapAmb:0000000000000000 ",
	},
	{"no_new_privs", `grep NoNewPrivs /proc/self/status`, "NoNewPrivs:\t0"},
	{"seccomp", `unshare -U true && echo unconfined`, "unconfined"},
	{"umask", "umask", "0022"},
	{"oom_score_adj", "cat /proc/self/oom_score_adj", "1000"},
	{"open descriptors", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done | tr '\\n' ' '", "0 1 2 3 "}, // 3 lists the directory
	{"process IDs", `echo $$; set -- /proc/[0-9]*; echo $#`, "1\n1"},
	{"host name", "hostname", "box"},
	{"cgroups", "cut -d: -f3 /proc/self/cgroup | sort -u", "/"},
	{"environment", "env | cut -d= -f1 | grep -vE '^(PATH|HOME|HOSTNAME|PWD|SHLVL|_|OLDPWD)$'", ""},
	{"masked paths", `for p in /proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list \
		/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
		if [ -d $p ]; then ls -A $p; touch $p/x 2>/dev/null && echo "$p is written to"
		elif [ -e $p ]; then [ "$(stat -c %t:%T $p)" = 1:3 ] || echo "$p is $(stat -c '%F %t:%T' $p)"; fi; done`, ""},
	{
		"read-only paths", `for p in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do
		[ ! -e $p ] || grep -q " $p proc ro," /proc/self/mounts || echo "$p can be written"; done
		(echo 1 > /proc/sys/vm/swappiness) 2>&1 | grep -o 'Read-only file system'`,
		"Read-only file system",
	},
	{"/proc", "grep ' /proc proc ' /proc/self/mounts | cut -d' ' -f4", "rw,nosuid,nodev,noexec,relatime"},
	{"/sys", "grep ' /sys sysfs ' /proc/self/mounts | cut -d' ' -f4", "ro,nosuid,nodev,noexec,relatime"},
	{"/sys/fs/cgroup", `grep -E ' /sys/fs/cgroup[ /]' /proc/self/mounts | grep -vE ' ro,nosuid,nodev,noexec,relatime'`, ""},
	{
		"/dev", `grep ' /dev tmpfs ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1-3; ls /dev | sort | tr '\n' ' '`,
		"rw,nosuid,size=65536k\ncore fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero ",
	},
	{
		"/dev/pts", "grep ' /dev/pts devpts ' /proc/self/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E '^(rw|nosuid|noexec|gid|mode|ptmxmode)' | tr '\\n' ' '",
		"rw nosuid noexec gid=5 mode=620 ptmxmode=666 ",
	},
	{"/dev/shm", "grep ' /dev/shm tmpfs ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1-4; df -k /dev/shm | tail -n 1 | awk '{print $2}'", "rw,nosuid,nodev,noexec\n65536"},
	{"/dev/mqueue", "grep ' /dev/mqueue mqueue ' /proc/self/mounts | cut -d' ' -f4", "rw,nosuid,nodev,noexec,relatime"},
	{"devices", `mknod /tmp/kmsg c 1 11 && (cat /tmp/kmsg) 2>&1 | grep -o 'Operation not permitted'; mknod /tmp/mem c 1 1 && (cat /tmp/mem) 2>&1 | grep -o 'Operation not permitted';
		mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null works`, "Operation not permitted\nOperation not permitted\nnull works"},
	{"the host's file systems", `grep -E ' (/run/systemd|/var/lib/kubelet|/var/lib/vk-metal|/run/vk-metal)' /proc/self/mounts; ls -d /run/systemd 2>/dev/null`, ""},
}

// asPlanned gives a container under test the security of one that the provider plans.
func asPlanned(t *testing.T, change func(*corev1.Container)) func(*launchspec.Spec) {
	t.Helper()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "box", UID: "u-1"},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if change != nil {
		change(&pod.Spec.Containers[0])
	}
	launch, err := podplan.Build(pod, podplan.Containers(pod)[0], podplan.Start{Container: "c"},
		podplan.PodInputs{Hostname: "box"}, podplan.ContainerInputs{Image: podplan.Image{Cmd: []string{"/app"}}})
	if err != nil {
		t.Fatal(err)
	}
	plan := launch.Spec
	return func(spec *launchspec.Spec) {
		spec.Env, spec.User, spec.Sysctls = plan.Env, plan.User, plan.Sysctls
		spec.MaskedPaths, spec.ReadonlyPaths = plan.MaskedPaths, plan.ReadonlyPaths
		spec.Capabilities, spec.NoNewPrivileges, spec.Privileged = plan.Capabilities, plan.NoNewPrivileges, plan.Privileged
		spec.SeccompBPF, spec.SeccompFlags = plan.SeccompBPF, plan.SeccompFlags
		spec.Rlimits, spec.Umask, spec.OOMScoreAdj = plan.Rlimits, plan.Umask, plan.OOMScoreAdj
	}
}

// TestMachineIsolation looks at every row from inside a container that asks for nothing.
func TestMachineIsolation(t *testing.T) {
	run := systemd.ScriptRunner(t)
	for _, test := range isolation {
		t.Run(test.row, func(t *testing.T) {
			if got := strings.TrimSuffix(run(test.script, asPlanned(t, nil)), "\n"); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	yes, no := true, false
	t.Run("no privilege escalation", func(t *testing.T) {
		got := run("grep NoNewPrivs /proc/self/status", asPlanned(t, func(c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{AllowPrivilegeEscalation: &no}
		}))
		if got != "NoNewPrivs:\t1\n" {
			t.Errorf("%q", got)
		}
	})
	t.Run("privileged", func(t *testing.T) {
		got := run("cat /proc/keys > /dev/null && echo keys; grep -c ' ro,' /proc/self/mounts; touch /sys/x 2>&1 | grep -c Read-only; ls -d /run/systemd", asPlanned(t, func(c *corev1.Container) {
			c.SecurityContext = &corev1.SecurityContext{Privileged: &yes}
		}))
		if !strings.HasPrefix(got, "keys\n") || !strings.Contains(got, "\n0\n") {
			t.Errorf("%q", got)
		}
	})
}

// TestIsolationIsDocumented: the document has every row that is looked at.
func TestIsolationIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../docs/isolation.md")
	if _, source := os.Stat("../go.mod"); errors.Is(err, fs.ErrNotExist) && source != nil {
		t.Skip("runs where the source is")
	}
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			rows = append(rows, strings.TrimSpace(cells[1]))
		}
	}
	for _, test := range isolation {
		if !slices.Contains(rows, test.row) {
			t.Errorf("docs/isolation.md has no row %q", test.row)
		}
	}
}
