package bench

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/rig"
)

const (
	oneByOne = 50
	atOnce   = 100
	// benchTime bounds all of it, the building of what is missing included.
	benchTime = 40 * time.Minute
)

// TestPods prints how fast pods run on one machine, and what that is of the floor: a
// container started by hand through systemd, and the writes to the API server.
func TestPods(t *testing.T) {
	if os.Getenv("VK_METAL_BENCH") == "" {
		t.Skip("boots a cluster to measure it: set VK_METAL_BENCH=1 (make bench)")
	}
	ctx, cancel := context.WithTimeout(t.Context(), benchTime)
	defer cancel()
	b := setUp(ctx, t)
	b.one("warm-up") // the image is there afterwards
	floor := b.starts() + 2*b.writes().At(0.5)
	var times Times
	changes := 0
	used, passed := b.usage(), b.stages()
	for i := range oneByOne {
		took, seen := b.one(fmt.Sprintf("one-%d", i))
		times, changes = append(times, took), changes+seen
	}
	t.Logf("create to Running, %d pods one after the other: %s, in %.1f changes of each pod", oneByOne, times, float64(changes)/oneByOne)
	t.Logf("each: %s", b.stages().since(passed))
	t.Logf("processor time of each, start and end: %s", b.usage().since(used, oneByOne))
	t.Logf("floor, one container and two writes: %s ms; of it p50 is %.2f, p99 %.2f", ms(floor),
		float64(times.At(0.5))/float64(floor), float64(times.At(0.99))/float64(floor))
	b.many(floor)
}

// bench is a cluster, and the first of its nodes.
type bench struct {
	*testing.T
	ctx  context.Context
	c    *cluster.Cluster
	node *rig.Machine
	ns   string
}

func setUp(ctx context.Context, t *testing.T) *bench {
	t.Helper()
	return setUpWith(ctx, t, 1)
}

// setUpWith brings a cluster up for this test, or takes the one whose state is in
// VK_METAL_BENCH_STATE (metalrig up), which stays up.
func setUpWith(ctx context.Context, t *testing.T, nodes int) *bench {
	t.Helper()
	if dir := os.Getenv("VK_METAL_BENCH_STATE"); dir != "" {
		c, err := cluster.Open(dir, progress.New(os.Stderr))
		if err != nil {
			t.Fatal(err)
		}
		return benchOn(ctx, t, c)
	}
	dir, err := os.MkdirTemp(rig.CacheDir(), "bench-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		down, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		if err := cluster.Down(down, dir); err != nil {
			t.Error(err)
		}
		_ = os.RemoveAll(dir)
	})
	c, err := cluster.Up(ctx, cluster.Options{Dir: dir, Nodes: nodes, Progress: progress.New(os.Stderr)})
	if err != nil {
		t.Fatal(err)
	}
	return benchOn(ctx, t, c)
}

// benchOn measures on a cluster that is up.
func benchOn(ctx context.Context, t *testing.T, c *cluster.Cluster) *bench {
	t.Helper()
	node, err := c.Rig.Machine(cluster.NodeName(0))
	if err != nil {
		t.Fatal(err)
	}
	return &bench{T: t, ctx: ctx, c: c, node: node, ns: metav1.NamespaceDefault}
}

// pod is of one container that sleeps.
func (b *bench) pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: b.ns, Labels: map[string]string{"bench": "pod"}},
		Spec: corev1.PodSpec{
			NodeName: b.node.Name, TerminationGracePeriodSeconds: ptr.To(int64(0)),
			Containers: []corev1.Container{{Name: "main", Image: registry.Busybox, Command: []string{"sleep", "3600"}}},
		},
	}
}

// watchPods watches from before anything is made.
func (b *bench) watchPods() watch.Interface {
	b.Helper()
	pods := b.c.Client.CoreV1().Pods(b.ns)
	list, err := pods.List(b.ctx, metav1.ListOptions{})
	if err != nil {
		b.Fatal(err)
	}
	w, err := pods.Watch(b.ctx, metav1.ListOptions{LabelSelector: "bench=pod", ResourceVersion: list.ResourceVersion})
	if err != nil {
		b.Fatal(err)
	}
	return w
}

// await reads events until seen says that it has seen enough.
func (b *bench) await(w watch.Interface, seen func(watch.EventType, *corev1.Pod) bool) {
	b.Helper()
	limit := time.NewTimer(3 * time.Minute)
	defer limit.Stop()
	for {
		select {
		case event, open := <-w.ResultChan():
			pod, isPod := event.Object.(*corev1.Pod)
			if !open || !isPod {
				b.Fatalf("watch ended: %+v", event)
			}
			if seen(event.Type, pod) {
				return
			}
		case <-limit.C:
			b.Fatal("no end in 3 minutes")
		case <-b.ctx.Done():
			b.Fatal(b.ctx.Err())
		}
	}
}

func (b *bench) create(name string) error {
	_, err := b.c.Client.CoreV1().Pods(b.ns).Create(b.ctx, b.pod(name), metav1.CreateOptions{})
	return err
}

// one makes a pod, says when it was seen Running and after how many changes, and takes it away.
func (b *bench) one(name string) (took time.Duration, changes int) {
	b.Helper()
	w := b.watchPods()
	defer w.Stop()
	start := time.Now()
	if err := b.create(name); err != nil {
		b.Fatal(err)
	}
	b.await(w, func(kind watch.EventType, pod *corev1.Pod) bool {
		if kind == watch.Modified {
			changes++
		}
		return pod.Status.Phase == corev1.PodRunning
	})
	took = time.Since(start)
	if err := b.remove(name); err != nil {
		b.Fatal(err)
	}
	b.await(w, func(kind watch.EventType, _ *corev1.Pod) bool { return kind == watch.Deleted })
	return took, changes
}

func (b *bench) remove(name string) error {
	return b.c.Client.CoreV1().Pods(b.ns).Delete(b.ctx, name, metav1.DeleteOptions{})
}

// many makes pods at once and takes them away at once.
func (b *bench) many(floor time.Duration) {
	b.Helper()
	w := b.watchPods()
	defer w.Stop()
	profiled := b.profile()
	used, passed := b.usage(), b.stages()
	start := time.Now()
	made := b.eachOf(b.create)
	running := map[types.UID]time.Duration{}
	b.await(w, func(_ watch.EventType, pod *corev1.Pod) bool {
		if _, seen := running[pod.UID]; !seen && pod.Status.Phase == corev1.PodRunning {
			running[pod.UID] = time.Since(start)
		}
		return len(running) == atOnce
	})
	all := time.Since(start)
	taken := b.usage().since(used, atOnce)
	b.Logf("%d pods at once: made in %.1f s, all Running after %.1f s: %.1f pods/s, %.2f of the floor each",
		atOnce, (<-made).Sub(start).Seconds(), all.Seconds(), atOnce/all.Seconds(), float64(all)/atOnce/float64(floor))
	b.Logf("processor time of each until all run: %s", taken)
	b.Logf("each: %s", b.stages().since(passed))
	profiled()
	start = time.Now()
	removed := b.eachOf(b.remove)
	gone := 0
	b.await(w, func(kind watch.EventType, _ *corev1.Pod) bool {
		if kind == watch.Deleted {
			gone++
		}
		return gone == atOnce
	})
	b.Logf("%d pods deleted at once: all gone after %.1f s", atOnce, time.Since(start).Seconds())
	<-removed
}

// eachOf does it to the many pods, one after the other, while the test reads its watch: the
// API server ends the watch of one that lets events wait. It tells when it was done with all.
func (b *bench) eachOf(do func(name string) error) (done <-chan time.Time) {
	all := make(chan time.Time, 1)
	go func() {
		for i := range atOnce {
			if err := do(fmt.Sprintf("many-%d", i)); err != nil {
				b.Error(err)
			}
		}
		all <- time.Now()
	}()
	return all
}

// profile writes what the agent does from now on, for some seconds, into the file
// VK_METAL_BENCH_PROFILE, for go tool pprof; the returned function waits for it.
func (b *bench) profile() (wait func()) {
	b.Helper()
	file := os.Getenv("VK_METAL_BENCH_PROFILE")
	if file == "" {
		return func() {}
	}
	done := make(chan error, 1)
	go func() {
		request := b.c.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", b.node.Name, "proxy/debug/pprof/profile").Param("seconds", "3")
		data, err := request.DoRaw(b.ctx)
		if err == nil {
			err = os.WriteFile(file, data, 0o600)
		}
		done <- err
	}()
	return func() {
		if err := <-done; err != nil {
			b.Errorf("profile the agent: %v", err)
		}
	}
}

// usage is what the node and the control plane have used so far.
func (b *bench) usage() usage {
	b.Helper()
	leader, err := b.node.Leader(b.ctx)
	if err != nil {
		b.Fatal(err)
	}
	processes, err := b.c.Rig.Processes()
	if err != nil {
		b.Fatal(err)
	}
	others := map[int]string{os.Getpid(): "this test"}
	for _, p := range processes {
		others[p.PID] = p.Name
	}
	u, err := usageNow(leader, others)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// writes are times of a small write to the API server, seen from outside of the node.
func (b *bench) writes() Times {
	b.Helper()
	maps := b.c.Client.CoreV1().ConfigMaps(b.ns)
	if _, err := maps.Create(b.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "bench"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := maps.Delete(b.ctx, "bench", metav1.DeleteOptions{}); err != nil {
			b.Error(err)
		}
	}()
	var times Times
	for i := range 200 {
		start := time.Now()
		patch := fmt.Appendf(nil, `{"data":{"key":"%d"}}`, i)
		if _, err := maps.Patch(b.ctx, "bench", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			b.Fatal(err)
		}
		times = append(times, time.Since(start))
	}
	b.Logf("write to the API server: %s", times)
	return times
}

// starts is the median of a container's start by package systemd alone, measured on the
// node by that package's own test while the agent is stopped.
func (b *bench) starts() time.Duration {
	b.Helper()
	root, err := artifacts.Root()
	if err != nil {
		b.Fatal(err)
	}
	binary := filepath.Join(b.TempDir(), "systemd.test")
	build := exec.CommandContext(b.ctx, "go", "test", "-c", "-o", binary, "./systemd")
	build.Dir, build.Env = root, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("build the test of package systemd: %v\n%s", err, out)
	}
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		b.Fatal(err)
	}
	for src, dst := range map[string]string{binary: "/opt/systemd.test", busybox: "/opt/busybox"} {
		if err := b.node.CopyIn(b.ctx, src, dst); err != nil {
			b.Fatal(err)
		}
	}
	b.on("systemctl", "stop", "vk-metal.service")
	defer b.on("systemctl", "start", "vk-metal.service")
	out := b.on("systemd-run", "--quiet", "--collect", "--pipe", "--wait", "--property=TasksMax=infinity", "--property=WorkingDirectory=/opt",
		"--property=StateDirectory=vk-metal", "--setenv=VK_METAL_REQUIRE=all", "--setenv=VK_METAL_BENCH=1", "--setenv=VK_METAL_TEST_BUSYBOX=/opt/busybox",
		"--setenv=VK_METAL_TEST_SLOWNESS=5", // time-outs only: the host may be busy
		"/opt/systemd.test", "-test.v", "-test.timeout=10m", "-test.run=^TestMachine(Latency|Parts)$")
	return b.launcher(out)
}

// launcher finds the median in what the test printed.
func (b *bench) launcher(out string) time.Duration {
	b.Helper()
	const way = "container, transient unit"
	var median time.Duration
	for line := range strings.Lines(out) {
		if !strings.Contains(line, " p50 ") {
			continue
		}
		b.Log(strings.TrimSpace(line))
		if rest, ok := strings.CutPrefix(line, way); ok {
			fields := strings.Fields(rest)
			if took, err := time.ParseDuration(fields[1]); err == nil {
				median = took
			}
		}
	}
	if median == 0 {
		b.Fatalf("no median of a %s in:\n%s", way, out)
	}
	return median
}

// on runs a command on the node.
func (b *bench) on(argv ...string) string {
	b.Helper()
	var out bytes.Buffer
	if err := b.node.Exec(b.ctx, rig.Command{Argv: argv, Stdout: &out, Stderr: &out}); err != nil {
		b.Fatalf("%v\n%s", err, out.String())
	}
	return out.String()
}
