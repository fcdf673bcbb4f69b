package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

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

// TestNamespacesThatPodsShare: one among a pod's containers, or the node's.
func TestNamespacesThatPodsShare(t *testing.T) {
	e := setup(t)
	shared := e.busybox("shared", "exec sleep 3601")
	shared.Spec.ShareProcessNamespace = ptr.To(true)
	shared.Spec.Containers = append(shared.Spec.Containers, corev1.Container{Name: "other", Image: registry.Busybox, Command: []string{"sleep", "3602"}})
	host := e.busybox("host", "exec sleep 3603")
	host.Spec.HostPID, host.Spec.HostIPC = true, true
	for _, pod := range []*corev1.Pod{shared, host} {
		e.create(pod)
	}
	shared = e.waitPod("shared", podTimeout, running)
	processes := e.processes(shared, "other")
	for _, want := range []string{"1 /pause\n", " sleep 3601\n", " sleep 3602\n"} {
		if !strings.Contains(processes, want) {
			t.Errorf("%q is not among the pod's processes:\n%s", want, processes)
		}
	}
	host = e.waitPod("host", podTimeout, running)
	for kind, same := range map[string]bool{"pid": true, "ipc": true, "mnt": false, "net": false, "uts": false} {
		inside := strings.TrimSpace(e.exec(host, "readlink", "/proc/self/ns/"+kind))
		outside := strings.TrimSpace(e.on(host.Spec.NodeName, "readlink", "/proc/1/ns/"+kind))
		if (inside == outside) != same {
			t.Errorf("hostPID, hostIPC: %s is %s inside, %s outside", kind, inside, outside)
		}
	}
	if processes := e.processes(host, "main"); !strings.Contains(processes, "vk-metal-log") {
		t.Errorf("the node's processes are not there:\n%s", processes)
	}
}

// processes are those that a container sees, as "PID command line".
func (e *env) processes(pod *corev1.Pod, container string) string {
	e.Helper()
	const script = `for p in /proc/[0-9]*; do echo "${p#/proc/}" $(tr '\0' ' ' <"$p/cmdline"); done 2>/dev/null`
	out, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, container, nil, "sh", "-c", script)
	if err != nil {
		e.Fatalf("list processes: %v: %s", err, stderr)
	}
	return out
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
