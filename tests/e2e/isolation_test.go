package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/tests/registry"
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
