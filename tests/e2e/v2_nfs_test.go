package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

// nfsData is the exported directory that pods use.
const nfsData = "/srv/nfs/data"

// serveNFS starts the kernel's server on the node until the test ends, with one file that is
// root's, and returns its address.
func (e *env) serveNFS() string {
	e.Helper()
	machine := e.machine(v2Node())
	e.on(v2Node(), "mkdir", "-p", nfsData, "/etc/nfs.conf.d")
	for file, text := range map[string]string{
		"/etc/exports":             "/srv/nfs *(rw,sync,no_subtree_check,no_root_squash,insecure)\n",
		"/etc/nfs.conf.d/e2e.conf": "[nfsd]\nthreads=4\ngrace-time=10\nlease-time=10\n",
		nfsData + "/given":         "given\n",
	} {
		if err := machine.WriteFile(e.Context(), file, []byte(text), 0o640); err != nil {
			e.Fatal(err)
		}
	}
	e.on(v2Node(), "sh", "-ec", "chmod 755 "+nfsData+"; systemctl start nfs-server; exportfs -ra; apt-get -q -y install nftables") //nolint:misspell // exportfs(8)
	e.afterwards("stop the NFS server", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "sh", "-c", "systemctl stop nfs-server nfs-mountd nfs-idmapd rpcbind.socket rpcbind; systemctl reset-failed")
		return err
	})
	return machine.V4.String()
}

// nfsAway makes the server unreachable, as a cut cable would, until the returned function is called.
func (e *env) nfsAway() (back func()) {
	e.Helper()
	e.on(v2Node(), "nft", "table inet e2e-away { chain out { type filter hook output priority -300; tcp dport 2049 drop; tcp sport 2049 drop; }; }")
	gone := false
	back = func() {
		if !gone {
			gone = true
			e.on(v2Node(), "nft", "delete", "table", "inet", "e2e-away")
		}
	}
	machine := e.machine(v2Node())
	e.afterwards("bring the NFS server back", func(ctx context.Context) error {
		if gone {
			return nil
		}
		_, err := machine.Run(ctx, "nft", "delete", "table", "inet", "e2e-away")
		return err
	})
	return back
}

// onNFS is a pod with the volume at /data.
func (e *env) onNFS(name string, source corev1.VolumeSource, script string) *corev1.Pod {
	pod := e.onV2(name, script+"\nexec sleep 36000")
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: source}}
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	return pod
}

func inlineNFS(server, path string, readonly bool) corev1.VolumeSource {
	return corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{Server: server, Path: path, ReadOnly: readonly}}
}

// claimNFS makes a claim of the export with mount options.
func (e *env) claimNFS(name, server string, options ...string) corev1.VolumeSource {
	e.Helper()
	e.claim(name, corev1.PersistentVolumeFilesystem, corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: server, Path: nfsData}}, "")
	patch := fmt.Appendf(nil, `{"spec":{"mountOptions":["%s"]}}`, strings.Join(options, `","`))
	_, err := e.c.Client.CoreV1().PersistentVolumes().Patch(e.Context(), name, types.MergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		e.Fatal(err)
	}
	return corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name}}
}

// nfsMounts are the node's own NFS mounts for a pod, as the kernel lists them.
func (e *env) nfsMounts(pod *corev1.Pod) string {
	e.Helper()
	return e.on(v2Node(), "sh", "-c", "grep ' nfs4 ' /proc/mounts | grep "+string(pod.UID)+" || true")
}

// waitMessage waits for an event of the pod that says all of the words.
func (e *env) waitMessage(pod *corev1.Pod, reason string, words ...string) {
	e.Helper()
	e.eventually(v2Timeout, func() string {
		text := e.messages(pod, reason)
		for _, word := range words {
			if !strings.Contains(text, word) {
				return fmt.Sprintf("events %s of %s say %q, want %q", reason, pod.Name, text, word)
			}
		}
		return ""
	})
}

// TestV2NFS has a real server and the kernel's client: volumes of a pod's own and of claims, and
// what happens to their pods and to others when the server goes away.
func TestV2NFS(t *testing.T) {
	e := setupV2(t)
	server := e.serveNFS()
	writer := e.onNFS("writer", inlineNFS(server, nfsData, false), "cat /data/given; echo writer >/data/w; echo sub >/sub/x")
	writer.Spec.SecurityContext = &corev1.PodSecurityContext{FSGroup: ptr.To(int64(4321))}
	writer.Spec.Containers[0].VolumeMounts = append(writer.Spec.Containers[0].VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: "/sub", SubPath: "deep/er"})
	e.create(writer)
	e.create(e.onNFS("looker", inlineNFS(server, nfsData, true), "cat /data/given; touch /data/no 2>&1"))
	e.create(e.onNFS("hard", e.claimNFS("e2e-nfs-hard", server, "nfsvers=4.1", "hard,_netdev"), "cat /data/given"))
	e.create(e.onNFS("soft", e.claimNFS("e2e-nfs-soft", server, "soft", "timeo=30,noexec"), "cat /data/given"))
	absent := e.create(e.onNFS("absent", inlineNFS(server, "/srv/none", false), ""))
	wrong := e.create(e.onNFS("wrong", e.claimNFS("e2e-nfs-wrong", server, "nonsense=1"), ""))
	for name, log := range map[string]string{
		"writer": "given\n", "looker": "given\ntouch: /data/no: Read-only file system\n", "hard": "given\n", "soft": "given\n",
	} {
		e.waitPod(name, v2Timeout, running)
		e.waitLog(name, log)
	}
	e.checkNFSContent()
	e.waitMessage(absent, "FailedMount", server+":/srv/none", "no such file or directory")
	e.waitMessage(wrong, "FailedMount", `mount option "nonsense=1"`)
	e.remove("absent", v2Timeout)
	e.remove("wrong", v2Timeout)
	e.checkNFSAway(server)
}

// checkNFSContent looks at the files from both sides, and at what the kernel was told.
func (e *env) checkNFSContent() {
	e.Helper()
	hard := e.pod("hard")
	e.exec(hard, "sh", "-c", "cat /data/w; echo hard >/data/h")
	if got := e.exec(e.pod("writer"), "cat", "/data/h", "/sub/x"); got != "hard\nsub\n" {
		e.Errorf("what another pod wrote: %q", got)
	}
	if got := e.on(v2Node(), "sh", "-c", "cd "+nfsData+"; cat w deep/er/x; stat -c '%g %a' given ."); got != "writer\nsub\n0 640\n0 755\n" {
		e.Errorf("the server has %q: fsGroup is not for NFS", got)
	}
	for name, words := range map[string][]string{
		"writer": {" rw,", "vers=4.2", "hard"}, "looker": {" ro,", "vers=4.2"}, "hard": {" rw,", "vers=4.1", "hard"}, "soft": {"noexec", "vers=4.2", "soft", "timeo=30"},
	} {
		mounted := e.nfsMounts(e.pod(name))
		for _, word := range words {
			if !strings.Contains(mounted, word) {
				e.Errorf("%s: mounted as %q, want %q", name, mounted, word)
			}
		}
	}
}

// checkNFSAway takes the server away from pods that use it: those that come wait and say why, those
// that go go, the agent starts anew, other pods do not notice; and those that stay go on once it is back.
func (e *env) checkNFSAway(server string) {
	e.Helper()
	hard := e.pod("hard")
	units := e.podUnits(hard)
	back := e.nfsAway()
	late := e.create(e.onNFS("late", inlineNFS(server, nfsData, false), ""))
	e.create(e.onV2("beside", "exec sleep 36000"))
	e.waitPod("beside", v2Timeout, running)
	e.waitMessage(late, "FailedMount", `volume "data"`, "NFS server "+server)
	e.remove("late", v2Timeout)

	e.on(v2Node(), "systemctl", "restart", "vk-metal.service")
	for _, name := range []string{"writer", "looker"} {
		pod := e.pod(name)
		e.Logf("%s went %s after it was deleted", name, e.remove(name, v2Timeout))
		e.eventually(v2Timeout, func() string { return e.nfsMounts(pod) })
	}
	e.on(v2Node(), "systemctl", "restart", "vk-metal.service")
	e.create(e.onV2("next", "exec sleep 36000"))
	e.waitPod("next", v2Timeout, running)
	e.create(e.onNFS("later", inlineNFS(server, nfsData, false), "cat /data/w"))

	back()
	e.waitPod("later", v2Timeout, running)
	e.waitLog("later", "writer\n")
	if got := e.exec(hard, "sh", "-c", "echo again >>/data/h; cat /data/h"); got != "hard\nagain\n" {
		e.Errorf("a pod that stayed reads %q", got)
	}
	if now := e.podUnits(hard); fmt.Sprint(now) != fmt.Sprint(units) {
		e.Errorf("units of the pod that stayed: %v became %v", units, now)
	}
	for _, name := range []string{"hard", "soft", "later"} {
		e.remove(name, v2Timeout)
	}
	e.eventually(v2Timeout, func() string { return e.on(v2Node(), "sh", "-c", "grep ' nfs4 ' /proc/mounts || true") })
}
