package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/rig"
)

// legacyImage is a Debian with some services, in a directory of a node.
const legacyImage = "vk-metal.local/legacy"

// setupLegacy lets a node run Debian's own packages from a directory.
func setupLegacy(t *testing.T) (e *env, node string) {
	e = setupMore(t)
	node = e.c.Machines()[0].Name
	root, err := rig.EnsureRoot(e.Context(), rig.RootConfig{Packages: []string{"systemd", "nginx", "postgresql", "redis-server"}}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(e.machine(node).Root(), "srv/legacy")
	t.Cleanup(func() { _ = os.RemoveAll(copied) })
	if out, err := exec.CommandContext(e.Context(), "cp", "-a", "--reflink=auto", root, copied).CombinedOutput(); err != nil {
		t.Fatalf("copy %s: %v\n%s", root, err, out)
	}
	e.configure(node, "hostImages: {enabled: true, roots: [{name: legacy, path: /srv/legacy}]}")
	return e, node
}

// legacy is a pod of one of them. Writable are directories that it keeps its data in.
func (e *env) legacy(node, name string, writable []string, command ...string) *corev1.Pod {
	pod := e.busybox(name, "")
	pod.Spec.NodeName = node
	main := &pod.Spec.Containers[0]
	main.Image, main.Command = legacyImage, command
	for i, dir := range writable {
		volume := fmt.Sprint("data-", i)
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: volume, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}},
		})
		main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: volume, MountPath: dir})
	}
	return pod
}

// as lets the pod run as a user of the directory's.
func (e *env) as(pod *corev1.Pod, user string) *corev1.Pod {
	e.Helper()
	passwd, err := os.ReadFile(filepath.Join(e.machine(pod.Spec.NodeName).Root(), "srv/legacy/etc/passwd"))
	if err != nil {
		e.Fatal(err)
	}
	fields := strings.Split(lineWith(string(passwd), user+":x:"), ":")
	if len(fields) < 4 {
		e.Fatalf("there is no user %s", user)
	}
	uid, _ := strconv.ParseInt(fields[2], 10, 64)
	gid, _ := strconv.ParseInt(fields[3], 10, 64)
	pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsUser: &uid, RunAsGroup: &gid, FSGroup: &gid, RunAsNonRoot: ptr.To(true)}
	return pod
}

// TestLegacyNginx serves, logs and reloads Debian's nginx with its own configuration.
func TestLegacyNginx(t *testing.T) {
	e, node := setupLegacy(t)
	pod := e.legacy(node, "nginx", []string{"/var/log/nginx", "/var/lib/nginx"}, "nginx", "-e", "stderr", "-g", "daemon off;")
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{
		PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(80)}},
	}
	e.create(pod)
	pod = e.waitPod("nginx", podTimeout, running)
	if page := e.get(pod.Status.PodIP); !strings.Contains(page, "Welcome to nginx!") {
		t.Errorf("it serves %q", page)
	}
	if log := e.exec(pod, "cat", "/var/log/nginx/access.log"); !strings.Contains(log, "kube-probe/") {
		t.Errorf("its log says %q", log)
	}
	workers := func() string { return e.exec(pod, "sh", "-c", "grep -l 'nginx: worker' /proc/[0-9]*/cmdline") }
	before := workers()
	e.exec(pod, "nginx", "-s", "reload")
	e.eventually(30*time.Second, func() string {
		if now := workers(); now == "" || strings.Contains(now, strings.Fields(before)[0]) {
			return "the workers are " + now
		}
		return ""
	})
	if page := e.get(pod.Status.PodIP); !strings.Contains(page, "Welcome to nginx!") {
		t.Errorf("after the reload it serves %q", page)
	}
	if now := e.pod("nginx"); now.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("restarted:\n%s", describe(now))
	}
	if hosts := e.on(node, "cat", "/srv/legacy/etc/hosts"); strings.Contains(hosts, pod.Status.PodIP) {
		t.Error("the directory was written to")
	}
}

// get asks a pod for its page.
func (e *env) get(ip string) string {
	e.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return e.c.Dial(ctx, network, address)
		},
	}}
	defer client.CloseIdleConnections()
	answer, err := client.Get("http://" + net.JoinHostPort(ip, "80") + "/")
	if err != nil {
		e.Fatal(err)
	}
	defer answer.Body.Close()
	page, err := io.ReadAll(answer.Body)
	if err != nil {
		e.Fatal(err)
	}
	return string(page)
}

// TestLegacyPostgres runs Debian's PostgreSQL as its own user on a copy of the cluster that
// the package made, which outlives the pod.
func TestLegacyPostgres(t *testing.T) {
	e, node := setupLegacy(t)
	const data = "/var/lib/postgresql"
	postgres := func(name string) *corev1.Pod {
		pod := e.as(e.legacy(node, name, []string{"/run/postgresql"},
			"/bin/sh", "-c", "exec /usr/lib/postgresql/*/bin/postgres -D "+data+"/*/main -c config_file=$(echo /etc/postgresql/*/main/postgresql.conf)"), "postgres")
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "data", VolumeSource: corev1.VolumeSource{
			HostPath: &corev1.HostPathVolumeSource{Path: "/srv/postgres", Type: ptr.To(corev1.HostPathDirectoryOrCreate)},
		}})
		main := &pod.Spec.Containers[0]
		pod.Spec.InitContainers = []corev1.Container{{
			Name: "first", Image: legacyImage, Command: []string{"sh", "-c", "[ -e /new/done ] || { cp -a " + data + "/. /new && chown postgres: /new && touch /new/done; }"},
			SecurityContext: &corev1.SecurityContext{RunAsUser: ptr.To(int64(0)), RunAsNonRoot: ptr.To(false)},
			VolumeMounts:    []corev1.VolumeMount{{Name: "data", MountPath: "/new"}},
		}}
		main.VolumeMounts = append(main.VolumeMounts, corev1.VolumeMount{Name: "data", MountPath: data})
		main.ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"pg_isready"}}}}
		pod.Spec.TerminationGracePeriodSeconds = ptr.To(int64(20))
		return pod
	}
	t.Cleanup(func() { _, _ = e.machine(node).Run(context.Background(), "rm", "-rf", "/srv/postgres") })
	e.create(postgres("one"))
	pod := e.waitPod("one", podTimeout, running)
	e.exec(pod, "psql", "-qc", "create table kept as select 42 as answer")
	if got := e.exec(pod, "psql", "-Atc", "select pg_reload_conf()"); got != "t\n" {
		t.Errorf("reload said %q", got)
	}
	e.eventually(30*time.Second, func() string {
		if log := e.logs("one", &corev1.PodLogOptions{Container: "main"}); !strings.Contains(log, "received SIGHUP, reloading configuration files") {
			return "its log is " + log
		}
		return ""
	})
	e.remove("one", time.Minute)
	e.create(postgres("two"))
	pod = e.waitPod("two", podTimeout, running)
	if got := e.exec(pod, "psql", "-Atc", "select answer from kept"); got != "42\n" {
		t.Errorf("the next pod reads %q", got)
	}
}

// TestLegacyRedis runs Debian's Redis as its own user with its own configuration.
func TestLegacyRedis(t *testing.T) {
	e, node := setupLegacy(t)
	pod := e.as(e.legacy(node, "redis", []string{"/var/lib/redis", "/run/redis"},
		"redis-server", "/etc/redis/redis.conf", "--daemonize", "no", "--supervised", "no", "--logfile", ""), "redis")
	pod.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"redis-cli", "ping"}}}}
	e.create(pod)
	pod = e.waitPod("redis", podTimeout, running)
	e.exec(pod, "redis-cli", "set", "key", "kept")
	e.exec(pod, "redis-cli", "save")
	e.killMain(pod)
	pod = e.waitPod("redis", podTimeout, restarted(1))
	if got := e.exec(pod, "redis-cli", "get", "key"); got != "kept\n" {
		t.Errorf("after a crash it says %q", got)
	}
	if log := e.logs("redis", &corev1.PodLogOptions{}); !strings.Contains(log, "Ready to accept connections") {
		t.Errorf("its log is %q", log)
	}
}
