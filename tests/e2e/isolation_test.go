package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/registry"
)

// isolation is what docs/isolation.md says of a container that asks for nothing, row by
// row: a script that runs in one, and what it has to print.
var isolation = []struct{ row, script, want string }{
	{
		"capabilities", `grep -E '^Cap(Inh|Prm|Eff|Bnd|Amb)' /proc/self/status | tr -d '\t' | tr '\n' ' '`,
		"CapInh:0000000000000000 CapPrm:00000000a80425fb CapEff:00000000a80425fb CapBnd:00000000a80425fb CapAmb:0000000000000000 ",
	},
	{"no_new_privs", `grep NoNewPrivs /proc/self/status`, "NoNewPrivs:\t0"},
	{"seccomp", `grep Seccomp: /proc/self/status`, "Seccomp:\t0"},
	{"umask", "umask", "0022"},
	{"oom_score_adj", "cat /proc/self/oom_score_adj", "1000"},
	{"open descriptors", "for fd in /proc/self/fd/*; do echo ${fd##*/}; done | tr '\\n' ' '", "0 1 2 3 "}, // 3 lists the directory
	{"process IDs", `echo $$; ls -d /proc/[0-9]* | wc -l`, "1\n3"},                                        // the shell, ls and wc
	{"host name", "hostname", "isolation"},
	{"cgroups", "cut -d: -f3 /proc/self/cgroup | sort -u", "/"},
	{"environment", "env | cut -d= -f1 | grep -vE '^(KUBERNETES_.*|PATH|HOME|HOSTNAME|PWD|SHLVL|_|OLDPWD)$'", ""},
	{"masked paths", `for p in /proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list \
		/proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap; do
		if [ -d $p ]; then ls -A $p; touch $p/x 2>/dev/null && echo "$p is written to"
		elif [ -e $p ]; then [ "$(stat -c %t:%T $p)" = 1:3 ] || echo "$p is $(stat -c '%F %t:%T' $p)"; fi; done`, ""},
	{
		"read-only paths", `for p in /proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger; do
		[ ! -e $p ] || grep -q " $p ro," /proc/self/mounts || echo "$p can be written"; done
		(echo b > /proc/sysrq-trigger) 2>&1 | grep -o 'Read-only file system'; (echo 1 > /proc/sys/vm/swappiness) 2>&1 | grep -o 'Read-only file system'`,
		"Read-only file system\nRead-only file system",
	},
	{"/proc", "grep ' /proc proc ' /proc/self/mounts | cut -d' ' -f4", "rw,nosuid,nodev,noexec,relatime"},
	{"/sys", "grep ' /sys sysfs ' /proc/self/mounts | cut -d' ' -f4", "ro,nosuid,nodev,noexec,relatime"},
	{"/sys/fs/cgroup", `grep -E ' /sys/fs/cgroup[ /]' /proc/self/mounts | grep -vE ' ro,nosuid,nodev,noexec,relatime'`, ""},
	{
		"/dev", `grep ' /dev tmpfs ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1-3; ls /dev | sort | tr '\n' ' '`,
		"rw,nosuid,size=65536k\ncore fd full mqueue null ptmx pts random shm stderr stdin stdout termination-log tty urandom zero ",
	},
	{
		"/dev/pts", "grep ' /dev/pts devpts ' /proc/self/mounts | cut -d' ' -f4 | tr , '\\n' | grep -E '^(rw|nosuid|noexec|gid|mode|ptmxmode)' | tr '\\n' ' '",
		"rw nosuid noexec gid=5 mode=620 ptmxmode=666 ",
	},
	{"/dev/shm", "grep ' /dev/shm tmpfs ' /proc/self/mounts | cut -d' ' -f4 | cut -d, -f1-4; df -k /dev/shm | tail -n 1 | awk '{print $2}'", "rw,nosuid,nodev,noexec\n65536"},
	{"/dev/mqueue", "grep ' /dev/mqueue mqueue ' /proc/self/mounts | cut -d' ' -f4", "rw,nosuid,nodev,noexec,relatime"},
	{"devices", `mknod /tmp/kmsg c 1 11 && (cat /tmp/kmsg) 2>&1 | grep -o 'Operation not permitted'; mknod /tmp/mem c 1 1 && (cat /tmp/mem) 2>&1 | grep -o 'Operation not permitted';
		mknod /tmp/null c 1 3 && echo x > /tmp/null && echo null works`, "Operation not permitted\nOperation not permitted\nnull works"},
	{"sysctls", "cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/sys/net/ipv4/ping_group_range", "0\n0\t2147483647"},
	{"resource limits", "ulimit -Sn", "1024"},
	{"the host's file systems", `grep -E ' (/run/systemd|/var/lib/kubelet|/var/lib/vk-metal|/run/vk-metal)' /proc/self/mounts; ls -d /run/systemd 2>/dev/null`, ""},
}

// TestIsolationOfAContainer looks at every row from inside, and that the document has it.
func TestIsolationOfAContainer(t *testing.T) {
	e := setup(t)
	pod := e.busybox("isolation", "sleep 3600")
	e.create(pod)
	pod = e.waitPod("isolation", podTimeout, running)
	rows := documentedRows(t)
	for _, test := range isolation {
		t.Run(test.row, func(t *testing.T) {
			// What is run by exec and what the first process has must be the same: the script
			// runs as exec does, whose process goes through the same last steps.
			if got := strings.TrimSuffix(e.in(t).exec(pod, "sh", "-c", test.script+"; true"), "\n"); got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			if !slices.Contains(rows, test.row) {
				t.Errorf("docs/isolation.md has no row %q", test.row)
			}
		})
	}
}

// documentedRows are the first cells of the tables in docs/isolation.md.
func documentedRows(t *testing.T) []string {
	t.Helper()
	root, err := artifacts.Root()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "docs/isolation.md"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for line := range strings.Lines(string(text)) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			rows = append(rows, strings.TrimSpace(cells[1]))
		}
	}
	return rows
}

// TestNamespacesAreTheContainersOwn compares with the machine's.
func TestNamespacesAreTheContainersOwn(t *testing.T) {
	e := setup(t)
	e.create(e.busybox("spaces", "sleep 3600"))
	pod := e.waitPod("spaces", podTimeout, running)
	for _, kind := range []string{"mnt", "pid", "uts", "ipc", "net", "cgroup"} {
		inside := strings.TrimSpace(e.exec(pod, "readlink", "/proc/self/ns/"+kind))
		outside := strings.TrimSpace(e.on(pod.Spec.NodeName, "readlink", "/proc/1/ns/"+kind))
		if inside == outside || !strings.HasPrefix(inside, kind+":[") {
			t.Errorf("%s: %s inside, %s outside", kind, inside, outside)
		}
	}
}

// TestSeccompProfiles makes calls under the default profile, under one of the node's own and
// under one that is not there.
func TestSeccompProfiles(t *testing.T) {
	e := setup(t)
	const script = `grep Seccomp: /proc/self/status; (unshare -U true) 2>&1 | grep -o 'Operation not permitted'; mkdir /tmp/d && echo made; sleep 3600`
	for _, machine := range e.c.Machines() {
		for name, text := range map[string]string{
			"no-mkdir.json": `{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}`,
			"broken.json":   `{"defaultAction": "SCMP_ACT_MAYBE"}`,
		} {
			write := fmt.Sprintf("mkdir -p /var/lib/kubelet/seccomp/e2e && printf '%%s' '%s' > /var/lib/kubelet/seccomp/e2e/%s", text, name)
			if out, err := machine.Run(t.Context(), "bash", "-c", write); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
		}
	}
	local := func(name string) *corev1.SeccompProfile {
		return &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeLocalhost, LocalhostProfile: &name}
	}
	for name, test := range map[string]struct {
		profile *corev1.SeccompProfile
		log     string
		waits   string
	}{
		"default": {&corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}, "Seccomp:\t2\nOperation not permitted\nmade\n", ""},
		"own":     {local("e2e/no-mkdir.json"), "Seccomp:\t2\nmkdir: can't create directory '/tmp/d': Function not implemented\n", ""},
		"broken":  {local("e2e/broken.json"), "", `"SCMP_ACT_MAYBE" is not an action`},
		"missing": {local("e2e/none.json"), "", `cannot load seccomp profile "/var/lib/kubelet/seccomp/e2e/none.json"`},
	} {
		t.Run(name, func(t *testing.T) {
			e := e.in(t)
			pod := e.busybox("seccomp-"+name, script)
			if name == "own" {
				pod.Spec.Containers[0].Command[2] = `grep Seccomp: /proc/self/status; mkdir /tmp/d 2>&1; sleep 3600`
			}
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{SeccompProfile: test.profile}
			e.create(pod)
			if test.waits == "" {
				e.waitPod(pod.Name, podTimeout, running)
				e.waitLog(pod.Name, test.log)
				return
			}
			pod = e.waitPod(pod.Name, podTimeout, waiting("CreateContainerError"))
			if message := pod.Status.ContainerStatuses[0].State.Waiting.Message; !strings.Contains(message, test.waits) {
				t.Errorf("it says %q, want %q", message, test.waits)
			}
		})
	}
}

// TestUserInStatus: a node that knows supplementalGroupsPolicy says whom it resolved.
func TestUserInStatus(t *testing.T) {
	e := setup(t)
	uid, policy := int64(1000), corev1.SupplementalGroupsPolicyStrict
	pod := e.busybox("user", "id; sleep 3600")
	pod.Spec.Containers[0].Image = registry.Agnhost
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &uid, SupplementalGroups: []int64{4242}, SupplementalGroupsPolicy: &policy}
	e.create(pod)
	user := e.waitPod("user", podTimeout, running).Status.ContainerStatuses[0].User
	if user == nil || user.Linux == nil || user.Linux.UID != 1000 || user.Linux.GID != 1000 || !slices.Equal(user.Linux.SupplementalGroups, []int64{1000, 4242}) {
		t.Errorf("status.user is %+v", user)
	}
}
