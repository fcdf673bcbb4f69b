package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// What only a kernel of its own shows: that of the virtual machine enforces AppArmor, and its
// file systems count by project.

// e2eProfile is a profile of the administrator's under a name; it forbids one file.
func e2eProfile(name string) string {
	return "profile " + name + ` flags=(attach_disconnected,mediate_deleted) {
  network, capability, file, umount, mount, signal, ptrace,
  deny /tmp/forbidden rwlk,
}
`
}

// loadProfile loads a profile until the test ends.
func (e *env) loadProfile(name string) {
	e.Helper()
	machine := e.machine(v2Node())
	file := "/run/" + name
	if err := machine.WriteFile(e.Context(), file, []byte(e2eProfile(name)), 0o644); err != nil {
		e.Fatal(err)
	}
	e.on(v2Node(), "apparmor_parser", "--replace", "--skip-cache", file)
	e.afterwards("remove profile", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "apparmor_parser", "--remove", file)
		return err
	})
}

// confined is a pod under a profile. Its root may mount, but for AppArmor.
func (e *env) confined(name string, profile *corev1.AppArmorProfile) *corev1.Pod {
	pod := e.onV2(name, `cat /proc/self/attr/current
mkdir -p /mnt; mount -t tmpfs none /mnt 2>&1 && echo mounted
for f in forbidden allowed; do (echo x >/tmp/$f) 2>/dev/null && echo $f is written; done
exec sleep 36000`)
	pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
		AppArmorProfile: profile, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN"}},
	}
	return pod
}

// TestV2AppArmor: each kind of profile does what it says and nothing else, for the container and
// for what is run in it later; one that the kernel does not have is named, and used once it is there.
func TestV2AppArmor(t *testing.T) {
	e := setupV2(t)
	if got := e.on(v2Node(), "cat", "/sys/module/apparmor/parameters/enabled"); got != "Y\n" {
		t.Fatalf("AppArmor of the machine: %q", got)
	}
	e.loadProfile("e2e-local")
	local := func(name string) *corev1.AppArmorProfile {
		return &corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
	}
	const (
		noMount  = "mount: mounting none on /mnt failed: Permission denied\n"
		mayMount = "mounted\n"
		noWrite  = "allowed is written\n"
		mayWrite = "forbidden is written\n" + noWrite
	)
	pods := map[string]struct {
		profile *corev1.AppArmorProfile
		log     string
	}{
		"silent":     {nil, "vk-metal-default (enforce)\n" + noMount + mayWrite},
		"default":    {&corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}, "vk-metal-default (enforce)\n" + noMount + mayWrite},
		"users":      {&corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeRuntimeDefault}, "vk-metal-default (enforce)\n" + noMount + mayWrite},
		"local":      {local("e2e-local"), "e2e-local (enforce)\n" + mayMount + noWrite},
		"unconfined": {&corev1.AppArmorProfile{Type: corev1.AppArmorProfileTypeUnconfined}, "unconfined\n" + mayMount + mayWrite},
		"privileged": {nil, "unconfined\n" + mayMount + mayWrite},
	}
	for name, p := range pods {
		pod := e.confined(name, p.profile)
		switch name {
		case "privileged":
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
		case "users":
			pod.Spec.HostUsers = ptr.To(false)
		}
		e.create(pod)
	}
	e.create(e.confined("absent", local("e2e-absent")))
	for name, p := range pods {
		e.waitPod(name, v2Timeout, running)
		e.waitLog(name, p.log)
	}
	absent := e.waitPod("absent", v2Timeout, waiting("CreateContainerError"))
	if message := absent.Status.ContainerStatuses[0].State.Waiting.Message; message != "apparmor profile not found e2e-absent" {
		t.Errorf("it waits: %q", message)
	}
	e.eventually(v2Timeout, func() string {
		if text := e.messages(absent, "Failed"); !strings.Contains(text, "apparmor profile not found e2e-absent") {
			return fmt.Sprintf("events say %q", text)
		}
		return ""
	})
	if got := e.exec(e.pod("local"), "sh", "-c", "cat /proc/self/attr/current; cat /tmp/forbidden || true"); got != "e2e-local (enforce)\n" {
		t.Errorf("a command in the container: %q", got)
	}

	// A policy that is loaded late, and a default that somebody has removed.
	e.on(v2Node(), "sh", "-c", "printf vk-metal-default >/sys/kernel/security/apparmor/.remove")
	e.loadProfile("e2e-absent")
	e.create(e.confined("again", nil))
	e.waitPod("absent", v2Timeout, running)
	e.waitLog("absent", "e2e-absent (enforce)\n"+mayMount+noWrite)
	e.waitPod("again", v2Timeout, running)
	e.waitLog("again", pods["silent"].log)
}

// spends is a pod with users of its own that writes into its volume and its layer.
func (e *env) spends(name, volumeLimit, limit, script string) *corev1.Pod {
	pod := e.onV2(name, script+"\nexec sleep 36000")
	pod.Spec.HostUsers, pod.Spec.RestartPolicy = ptr.To(false), corev1.RestartPolicyNever
	volume := &corev1.EmptyDirVolumeSource{SizeLimit: ptr.To(resource.MustParse(volumeLimit))}
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: volume}}}
	main := &pod.Spec.Containers[0]
	main.VolumeMounts = []corev1.VolumeMount{{Name: "data", MountPath: "/data"}}
	main.Resources.Limits = corev1.ResourceList{corev1.ResourceEphemeralStorage: resource.MustParse(limit)}
	return pod
}

// TestV2Quota: what pods take of the disk is what the file system's own tools say, and who takes
// more than it may is evicted in a kubelet's words.
func TestV2Quota(t *testing.T) {
	e := setupV2(t)
	if log := e.on(v2Node(), "journalctl", "-q", "-b", "-u", "vk-metal.service", "--grep", "user namespace take of the disk is counted by the file system"); log == "" {
		t.Error("the agent does not say that the file system counts")
	}
	const mib = "bs=1M count="
	e.create(e.spends("modest", "64Mi", "64Mi", "dd if=/dev/zero of=/data/file "+mib+"6; ln /data/file /data/again; truncate -s 1G /data/hole; dd if=/dev/zero of=/file "+mib+"3"))
	e.create(e.spends("volume", "4Mi", "64Mi", "dd if=/dev/zero of=/data/file "+mib+"16"))
	e.create(e.spends("layer", "64Mi", "4Mi", "dd if=/dev/zero of=/file "+mib+"16"))
	for name, want := range map[string]string{
		"volume": `Usage of EmptyDir volume "data" exceeds the limit "4Mi". `,
		"layer":  "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. ",
	} {
		if s := e.waitPod(name, v2Timeout, phase(corev1.PodFailed)).Status; s.Reason != "Evicted" || s.Message != want {
			t.Errorf("%s: %s: %q, want %q", name, s.Reason, s.Message, want)
		}
	}
	modest := e.waitPod("modest", v2Timeout, running)
	e.eventually(v2Timeout, func() string {
		reported, counted := e.volumeUsed(modest, "data"), e.projects()
		if reported < 6<<20 || reported > 7<<20 || !slices.Contains(counted, reported) {
			return fmt.Sprintf("the volume takes %d bytes by the node's figures, projects take %v by xfs_quota", reported, counted)
		}
		return ""
	})
}

// volumeUsed is what the node says that a volume takes.
func (e *env) volumeUsed(pod *corev1.Pod, volume string) uint64 {
	e.Helper()
	data, err := e.c.Client.CoreV1().RESTClient().Get().Resource("nodes").Name(pod.Spec.NodeName).SubResource("proxy").Suffix("stats/summary").DoRaw(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	var summary statsv1alpha1.Summary
	if err := json.Unmarshal(data, &summary); err != nil {
		e.Fatal(err)
	}
	for _, p := range summary.Pods {
		for _, v := range p.VolumeStats {
			if p.PodRef.UID == string(pod.UID) && v.Name == volume && v.UsedBytes != nil {
				return *v.UsedBytes
			}
		}
	}
	return 0
}

// projects are the bytes that each project of the machine's disk takes, as its own tool says.
func (e *env) projects() []uint64 {
	e.Helper()
	var list []uint64
	for line := range strings.Lines(e.on(v2Node(), "xfs_quota", "-f", "-x", "-c", "report -p -n -N -b", "/")) {
		var id, kib uint64
		if n, _ := fmt.Sscanf(line, "#%d %d", &id, &kib); n == 2 && id >= 1<<30 {
			list = append(list, kib<<10)
		}
	}
	return list
}

// TestV2QuotaOfFileSystems runs package diskuse's own tests on an ext4 and an XFS that count.
func TestV2QuotaOfFileSystems(t *testing.T) {
	e := setupV2(t)
	root, err := artifacts.Root()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "diskuse.test")
	build := exec.CommandContext(e.Context(), "go", "test", "-c", "-o", program, "./internal/diskuse")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build tests: %v\n%s", err, out)
	}
	if err := e.machine(v2Node()).CopyIn(e.Context(), program, "/opt/diskuse.test"); err != nil {
		t.Fatal(err)
	}
	e.on(v2Node(), "sh", "-ec", "truncate -s 320M /opt/xfs; mkfs.xfs -q /opt/xfs; mkdir -p /opt/on-xfs; mount -o loop,prjquota /opt/xfs /opt/on-xfs")
	machine := e.machine(v2Node())
	e.afterwards("unmount XFS", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "sh", "-ec", "umount /opt/on-xfs; rm /opt/xfs")
		return err
	})
	for _, dir := range []string{"/opt", "/opt/on-xfs"} {
		out := e.on(v2Node(), "sh", "-c", "cd /opt && VK_METAL_REQUIRE=all VK_METAL_TEST_QUOTA="+dir+" /opt/diskuse.test -test.v -test.timeout=10m 2>&1; echo exit $?")
		if !strings.HasSuffix(out, "PASS\nexit 0\n") || strings.Contains(out, "--- SKIP") {
			t.Errorf("on %s:\n%s", dir, out)
		}
	}
}
