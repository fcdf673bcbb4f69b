package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// forgery is what a service tells systemd of itself; whoever gets it to systemd may name any
// process as the service's, and keep systemd from its real one.
const forgery = `MAINPID=%s\nSTATUS=forged\nSTOPPING=1`

// forge sends the forgery to every socket that a process finds: files, also those below
// mounts, and names of its network. It prints the sockets.
const forge = `
until [ -S /tmp/listener ]; do sleep 0.05; done
for s in $(find / -path /proc -prune -o -type s -print 2>/dev/null) /run/systemd/notify \
	/proc/1/root/run/systemd/notify /proc/self/root/run/systemd/notify $NOTIFY_SOCKET \
	$(grep -o '@.*' /proc/net/unix); do
	echo "$s"
	for kind in -u ''; do
		printf '` + forgery + `' | nc -U $kind -w1 "$s" >/dev/null 2>&1 &
	done
done
for p in /proc/[0-9]*; do
	printf '` + forgery + `' | nc -U -u -w1 $p/root/run/systemd/notify >/dev/null 2>&1 &
done
wait`

// forgers are pods that see more and more of their host.
func (e *env) forgers() []*corev1.Pod {
	var pods []*corev1.Pod
	add := func(name string, change func(*corev1.PodSpec)) {
		pod := e.busybox("forger-"+name, "nc -k -l -u -U /tmp/listener >/tmp/heard & exec sleep 3600")
		pod.Spec.NodeName = cluster.NodeName(0)
		pod.Spec.Containers[0].Image = registry.Agnhost
		change(&pod.Spec)
		pods = append(pods, pod)
	}
	add("plain", func(*corev1.PodSpec) {})
	add("host-network", func(s *corev1.PodSpec) { s.HostNetwork = true })
	add("host-pid", func(s *corev1.PodSpec) { s.HostPID = true })
	for name, path := range map[string]string{
		"root": "/", "run": "/run", "link": "/var/run", "systemd": "/run/systemd", "socket": "/run/systemd/notify",
	} {
		add("path-"+name, func(s *corev1.PodSpec) {
			s.HostNetwork = name == "root"
			s.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: path}}}}
			s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "host", MountPath: "/host"}}
		})
	}
	add("propagated", func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{
			Name: "host", MountPath: "/host", MountPropagation: ptr.To(corev1.MountPropagationHostToContainer),
		}}
	})
	return pods
}

// TestForgedMainProcess: a workload, also one that sees its host's files and network, tells
// systemd that another process is its unit's, and nothing changes.
func TestForgedMainProcess(t *testing.T) {
	e := setup(t)
	pods := e.forgers()
	for _, pod := range pods {
		e.create(pod)
	}
	node := cluster.NodeName(0)
	// Another service's process: systemd lets root name any but 1.
	foreign := strings.TrimSpace(e.on(node, "systemctl", "show", "--property=MainPID", "--value", "dbus.service"))
	for _, pod := range pods {
		t.Run(pod.Name, func(t *testing.T) {
			e := e.in(t)
			pod := e.waitPod(pod.Name, podTimeout, running)
			before := e.toldOf(pod)
			sockets := e.exec(pod, "bash", "-c", fmt.Sprintf(forge, foreign, foreign))
			t.Logf("sent to %q", strings.Fields(sockets))
			if after := e.toldOf(pod); after != before || before == "" {
				t.Errorf("the unit was\n%s\nand is\n%s", before, after)
			}
			e.eventually(time.Minute, func() string {
				if heard := e.exec(pod, "cat", "/tmp/heard"); !strings.Contains(heard, "MAINPID="+foreign) {
					return fmt.Sprintf("a socket that is there heard %q", heard)
				}
				return ""
			})
			if env := e.exec(pod, "sh", "-c", "env; ls -A /run/systemd 2>/dev/null; true"); strings.Contains(env, "NOTIFY_SOCKET") || strings.Contains(env, "notify\n") {
				t.Errorf("the workload sees systemd: %q", env)
			}
		})
	}
	e.oursAreClosed(pods)
	// What is looked at does change where systemd is reached.
	e.on(node, "systemd-run", "--quiet", "--unit=forger-control", "-p", "NotifyAccess=all", "sh", "-c", "systemd-notify STATUS=forged; exec sleep 60")
	defer e.on(node, "systemctl", "stop", "forger-control.service")
	e.eventually(time.Minute, func() string {
		if text := e.on(node, "systemctl", "show", "--property=StatusText", "forger-control.service"); text != "StatusText=forged\n" {
			return "a unit that may speak to systemd has " + text
		}
		return ""
	})
}

// oursAreClosed: a pod that sees the host's processes does not come to the host's files by
// those of vk-metal.
func (e *env) oursAreClosed(pods []*corev1.Pod) {
	e.Helper()
	for _, pod := range pods {
		if !pod.Spec.HostPID {
			continue
		}
		pod := e.pod(pod.Name)
		for _, service := range []string{"vk-metal.service", "vk-metal-log.service"} {
			pid := strings.TrimSpace(e.on(pod.Spec.NodeName, "systemctl", "show", "--property=MainPID", "--value", service))
			look := fmt.Sprintf("grep -q ^Name:.vk-metal /proc/%[1]s/status && ! ls -d /proc/%[1]s/root/etc 2>&1", pid)
			if _, stderr, err := workload.Exec(e.Context(), e.c.Config, pod, "", nil, "sh", "-c", look); err != nil {
				e.Errorf("%s: the root of %s, process %s, is open (%v %s)", pod.Name, service, pid, err, stderr)
			}
		}
	}
}

// toldOf is what systemd was told of the pod's units.
func (e *env) toldOf(pod *corev1.Pod) string {
	e.Helper()
	var b strings.Builder
	for unit := range e.podUnits(pod) {
		b.WriteString(e.on(pod.Spec.NodeName, "systemctl", "show", "--property=Id,MainPID,StatusText,ActiveState,SubState", unit))
	}
	return b.String()
}
