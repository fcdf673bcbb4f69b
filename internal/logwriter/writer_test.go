package logwriter_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/logs"
	"github.com/vk-metal/vk-metal/internal/logs/logstream"
	"github.com/vk-metal/vk-metal/internal/logwriter"
	"github.com/vk-metal/vk-metal/internal/paths"
)

const (
	childEnv   = "VK_METAL_TEST_STREAMS"
	inotifyEnv = "VK_METAL_TEST_INOTIFY" // the limit of instances
)

// TestMain lets the test binary be a log writer that can be killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv(childEnv); dir != "" {
		if limit := os.Getenv(inotifyEnv); limit != "" {
			if err := os.WriteFile("/proc/sys/user/max_inotify_instances", []byte(limit), 0o644); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(2)
			}
		}
		w, err := logwriter.New(logwriter.Options{Dir: dir})
		if err == nil {
			err = w.Run(context.Background())
		}
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// node is a layout on tmpfs (as /run is) with logs on disk.
func node(t testing.TB) paths.Layout {
	t.Helper()
	run, err := os.MkdirTemp("/dev/shm", "vkm-log-")
	if err != nil {
		run = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(run) })
	return paths.Layout{Run: run, Log: t.TempDir()}
}

// startWriter runs a writer in this process until the test's end.
func startWriter(t testing.TB, layout paths.Layout, journal string) {
	t.Helper()
	w, err := logwriter.New(logwriter.Options{Dir: layout.LogStreams(), Journal: journal})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// container is what a workload sees of its stream.
type container struct {
	logs.Stream
	layout         paths.Layout
	stdout, stderr *os.File
}

func newStream(layout paths.Layout, name string) logs.Stream {
	return logs.Stream{
		LogFile: layout.ContainerLog("default", "pod", "uid", name, 0), Unit: "vkm-uid-" + name + "-0.service",
		PodNamespace: "default", PodName: "pod", PodUID: "uid", Container: name, MaxFiles: 1000,
	}
}

func startContainer(t testing.TB, layout paths.Layout, s logs.Stream) *container {
	t.Helper()
	stdout, stderr, err := logs.Create(layout, s)
	if err != nil {
		t.Fatal(err)
	}
	c := &container{Stream: s, layout: layout}
	for path, file := range map[string]**os.File{stdout: &c.stdout, stderr: &c.stderr} {
		fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0) // blocking, as the launcher does
		if err != nil {
			t.Fatal(err)
		}
		*file = os.NewFile(uintptr(fd), path)
	}
	return c
}

// end closes both pipes and waits for the log.
func (c *container) end(t testing.TB) {
	t.Helper()
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	c.wait(t)
}

func (c *container) wait(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := logs.WaitClosed(ctx, c.layout, c.PodUID, c.Container, c.Attempt); err != nil {
		t.Fatal(err)
	}
}

func (c *container) read(t testing.TB) (stdout, stderr []byte) {
	t.Helper()
	var out, err bytes.Buffer
	if e := logs.Read(context.Background(), c.LogFile, nil, nil, &out, &err); e != nil {
		t.Fatal(e)
	}
	return out.Bytes(), err.Bytes()
}

// noise makes output with lines of every kind: empty, long, binary, CRLF, no newline at the end.
func noise(seed uint64, size int) []byte {
	rng := rand.New(rand.NewPCG(seed, 1))
	var out []byte
	for len(out) < size {
		line := make([]byte, []int{0, 1, 20, 80, 200, 16384, 16385, 70000}[min(7, int(rng.ExpFloat64()*1.5))])
		for i := range line {
			line[i] = byte(rng.Uint32())
			if line[i] == '\n' {
				line[i] = 0
			}
		}
		out = append(append(out, line...), []string{"\n", "\r\n"}[rng.IntN(2)]...)
	}
	return append(out, "the end"...)
}

func compare(t testing.TB, name string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	at := 0
	for at < min(len(got), len(want)) && got[at] == want[at] {
		at++
	}
	t.Errorf("%s: %d bytes, want %d; they differ from byte %d on", name, len(got), len(want), at)
}

func TestStreamsAreByteExact(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	s := newStream(layout, "c")
	s.MaxSize = 1 << 20 // rotates many times
	c := startContainer(t, layout, s)
	wantOut, wantErr := noise(1, 20<<20), noise(2, 5<<20)
	var all sync.WaitGroup
	for file, data := range map[*os.File][]byte{c.stdout: wantOut, c.stderr: wantErr} {
		all.Go(func() { _, _ = file.Write(data) })
	}
	all.Wait()
	c.end(t)
	gotOut, gotErr := c.read(t)
	compare(t, "stdout", gotOut, wantOut)
	compare(t, "stderr", gotErr, wantErr)
}

func TestMillionLinesFollowed(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c := startContainer(t, layout, newStream(layout, "c"))
	pr, pw := io.Pipe()
	go func() {
		_ = pw.CloseWithError(logs.Read(t.Context(), c.LogFile, &corev1.PodLogOptions{Follow: true},
			func() bool { return true }, pw, pw))
	}()
	go func() {
		w := bufio.NewWriter(c.stdout)
		for i := range 1_000_000 {
			fmt.Fprintf(w, "line %d of a million\n", i)
		}
		_ = w.Flush()
		_ = c.stdout.Close()
		_ = c.stderr.Close()
	}()
	lines := 0
	scanner := bufio.NewScanner(pr)
	for ; scanner.Scan(); lines++ {
		if scanner.Text() != fmt.Sprintf("line %d of a million", lines) {
			t.Fatalf("line %d is %q", lines, scanner.Text())
		}
	}
	if scanner.Err() != nil || lines != 1_000_000 {
		t.Errorf("%d lines, %v", lines, scanner.Err())
	}
}

// TestKilledUnderLoad kills the writer again and again while a container floods it.
func TestKilledUnderLoad(t *testing.T) {
	layout := node(t)
	child := writerProcess(t, layout)
	s := newStream(layout, "c")
	s.MaxSize = 3 << 20
	c := startContainer(t, layout, s)
	wantOut, wantErr := noise(3, 60<<20), noise(4, 20<<20)
	written := make(chan struct{})
	go func() {
		defer close(written)
		var all sync.WaitGroup
		all.Go(func() { _, _ = c.stdout.Write(wantOut) })
		all.Go(func() { _, _ = c.stderr.Write(wantErr) })
		all.Wait()
	}()
	kills := 0
	for done := false; !done; kills++ {
		select {
		case <-time.After(time.Duration(5+rand.IntN(30)) * time.Millisecond):
		case <-written:
			done = true
		}
		kill(child)
		_ = os.Remove(c.openMark())
		child = writerProcess(t, layout)
	}
	t.Logf("killed %d times", kills)
	defer kill(child)
	c.waitOpen(t)
	c.end(t)
	gotOut, gotErr := c.read(t)
	compare(t, "stdout", gotOut, wantOut)
	compare(t, "stderr", gotErr, wantErr)
}

// waitOpen waits until a writer started anew holds the pipes.
func (c *container) waitOpen(t *testing.T) {
	t.Helper()
	eventually(t, func() bool { _, err := os.Stat(c.openMark()); return err == nil })
}

func (c *container) openMark() string {
	return filepath.Join(c.layout.LogStream(c.PodUID, c.Container, c.Attempt), logstream.OpenMark)
}

func kill(child *exec.Cmd) {
	_ = child.Process.Kill()
	_ = child.Wait()
}

func writerProcess(t *testing.T, layout paths.Layout) *exec.Cmd {
	t.Helper()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+layout.LogStreams())
	child.Stderr = os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	return child
}

// TestWithoutInotify: all of the user's inotify instances are taken, as a container of
// root's can do; streams are found, served and removed all the same.
func TestWithoutInotify(t *testing.T) {
	layout := node(t)
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+layout.LogStreams(), inotifyEnv+"=0")
	child.Stderr = os.Stderr
	ids := []syscall.SysProcIDMap{{Size: 1}}
	child.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := child.Start(); err != nil {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal(err)
		}
		t.Skipf("user namespaces: %v", err)
	}
	defer kill(child)
	for i := range 3 {
		c := startContainer(t, layout, newStream(layout, fmt.Sprint("c", i)))
		must(c.stdout.WriteString("hello\n"))
		c.end(t)
		if stdout, _ := c.read(t); string(stdout) != "hello\n" {
			t.Errorf("log is %q", stdout)
		}
	}
}

// TestWatchdog: a writer that nobody gives anything to do pings all the same.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	socket := must(net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"}))
	defer socket.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Setenv("WATCHDOG_USEC", "300000")
	startWriter(t, node(t), "")
	if err := socket.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	var buf [4096]byte
	for pings := 0; pings < 3; {
		n, err := socket.Read(buf[:])
		if err != nil {
			t.Fatalf("%v after %d pings", err, pings)
		}
		if bytes.Contains(buf[:n], []byte("WATCHDOG=1")) {
			pings++
		}
	}
}

func TestManyStreams(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	const count = 500
	var all sync.WaitGroup
	for i := range count {
		c := startContainer(t, layout, newStream(layout, fmt.Sprintf("c%d", i)))
		all.Go(func() {
			want := noise(uint64(i), 20<<10)
			_, _ = c.stdout.Write(want)
			fmt.Fprintf(c.stderr, "err %d\n", i)
			c.end(t)
			gotOut, gotErr := c.read(t)
			compare(t, c.Container, gotOut, want)
			compare(t, c.Container, gotErr, fmt.Appendf(nil, "err %d\n", i))
		})
	}
	all.Wait()
	eventually(t, func() bool {
		left, err := os.ReadDir(layout.LogStreams())
		return err == nil && len(left) == 1 && left[0].Name() == logstream.Socket
	})
}

// TestFloodDoesNotHoldOthersBack: a line of a quiet container arrives while another floods.
func TestFloodDoesNotHoldOthersBack(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	loud := newStream(layout, "loud")
	loud.MaxSize, loud.MaxFiles = 1<<20, 2
	flood := startContainer(t, layout, loud)
	quiet := startContainer(t, layout, newStream(layout, "quiet"))
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		data := noise(9, 1<<20)
		for {
			if _, err := flood.stdout.Write(data); err != nil {
				return
			}
		}
	}()
	for i := range 50 {
		fmt.Fprintf(quiet.stdout, "%d\n", i)
		eventually(t, func() bool {
			out, _ := quiet.read(t)
			return bytes.HasSuffix(out, fmt.Appendf(nil, "%d\n", i))
		})
	}
	eventually(t, func() bool { // in the middle of a rotation there is one more
		files, err := filepath.Glob(loud.LogFile + "*")
		return err == nil && len(files) <= 2
	})
	// A blocked write holds the file open: hang up from below.
	if err := logs.Remove(layout, "uid", "loud", 0); err != nil {
		t.Fatal(err)
	}
	reader := os.NewFile(uintptr(must(unix.Dup(int(flood.stdout.Fd())))), "flood")
	go func() { _, _ = io.Copy(io.Discard, reader) }()
	_ = flood.stdout.Close()
	<-stopped
	quiet.end(t)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("condition not met in time")
		}
	}
}

func TestStartFailureWithoutWriter(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	s := newStream(layout, "c")
	if _, _, err := logs.Create(layout, s); err != nil {
		t.Fatal(err)
	}
	c := &container{Stream: s, layout: layout}
	c.wait(t)
	c.wait(t) // idempotent
	if out, _ := c.read(t); len(out) > 0 {
		t.Errorf("log has %q", out)
	}
}

// TestEndedWhileWriterWasDown: nobody holds the pipes any more when the writer starts.
func TestEndedWhileWriterWasDown(t *testing.T) {
	layout := node(t)
	child := writerProcess(t, layout)
	c := startContainer(t, layout, newStream(layout, "c"))
	kill(child)
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := logs.WaitClosed(ctx, layout, "uid", "c", 0); err == nil {
		t.Error("closed without a writer")
	}
	startWriter(t, layout, "")
	c.wait(t)
}

func TestRemovedStreamIsDropped(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	s := newStream(layout, "c")
	c := startContainer(t, layout, s)
	fmt.Fprintln(c.stdout, "old")
	if err := logs.Remove(layout, "uid", "c", 0); err != nil {
		t.Fatal(err)
	}
	again := startContainer(t, layout, s)
	fmt.Fprintln(again.stdout, "new")
	again.end(t)
	if out, _ := again.read(t); !bytes.HasSuffix(out, []byte("new\n")) {
		t.Errorf("got %q", out)
	}
}

// TestInheritedPipes hands the pipes over as systemd's descriptor store does: what is
// in them outlives both the container and the writer.
func TestInheritedPipes(t *testing.T) {
	layout := node(t)
	first := writerProcess(t, layout)
	c := startContainer(t, layout, newStream(layout, "c"))
	dir := layout.LogStream("uid", "c", 0)
	var kept []*os.File
	for _, name := range []string{"stdout", "stderr"} {
		fd := must(unix.Open(filepath.Join(dir, name), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0))
		kept = append(kept, os.NewFile(uintptr(fd), name))
	}
	kill(first)
	fmt.Fprint(c.stdout, "last words")
	_ = c.stdout.Close()
	_ = c.stderr.Close()
	child := exec.Command("sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=uid.c.0.stdout:uid.c.0.stderr exec "$0"`, os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+layout.LogStreams())
	child.ExtraFiles, child.Stderr = kept, os.Stderr
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	defer kill(child)
	eventually(t, func() bool { _, err := os.Stat(dir); return os.IsNotExist(err) })
	if out, _ := c.read(t); string(out) != "last words" {
		t.Errorf("got %q", out)
	}
}

func TestFullDisk(t *testing.T) {
	layout := node(t)
	if err := unix.Mount("tmpfs", layout.Log, "tmpfs", 0, "size=256k"); err != nil {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal(err)
		}
		t.Skip("cannot mount:", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(layout.Log, unix.MNT_DETACH) })
	startWriter(t, layout, "")
	c := startContainer(t, layout, newStream(layout, "c"))
	if _, err := c.stdout.Write(bytes.Repeat([]byte("0123456789\n"), 200_000)); err != nil { // must not block
		t.Fatal(err)
	}
	other := startContainer(t, layout, newStream(layout, "d"))
	other.end(t)
	c.end(t)
	out, _ := c.read(t)
	for line := range strings.Lines(string(out)) {
		if line != "0123456789\n" {
			t.Fatalf("a record was cut: %q", line)
		}
	}
}

func TestJournalCopy(t *testing.T) {
	layout := node(t)
	socket := filepath.Join(layout.Run, "journal")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	startWriter(t, layout, socket)
	c := startContainer(t, layout, newStream(layout, "c"))
	fmt.Fprint(c.stderr, "oops\n")
	buf := make([]byte, 64<<10)
	_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	entry := parseEntry(t, buf[:n])
	for key, want := range map[string]string{
		"MESSAGE": "oops", "OBJECT_SYSTEMD_UNIT": c.Unit, "PRIORITY": "5", "SYSLOG_IDENTIFIER": "c", "VK_METAL_POD_UID": "uid",
	} {
		if entry[key] != want {
			t.Errorf("%s = %q, want %q", key, entry[key], want)
		}
	}
	// A flood is not held up by a journal that nobody reads.
	if _, err := c.stdout.Write(bytes.Repeat([]byte("x\n"), 1<<20)); err != nil {
		t.Fatal(err)
	}
	c.end(t)
	if out, _ := c.read(t); len(out) != 2<<20 {
		t.Errorf("log has %d bytes", len(out))
	}
}

// parseEntry reads the length form of journald's native protocol.
func parseEntry(t *testing.T, data []byte) map[string]string {
	t.Helper()
	entry := map[string]string{}
	for len(data) > 0 {
		name, rest, ok := bytes.Cut(data, []byte{'\n'})
		if !ok || len(rest) < 8 {
			t.Fatalf("cannot parse %q", data)
		}
		n := binary.LittleEndian.Uint64(rest)
		entry[string(name)] = string(rest[8 : 8+n])
		data = rest[8+n+1:]
	}
	return entry
}

func BenchmarkThroughput(b *testing.B) {
	layout := node(b)
	startWriter(b, layout, "")
	s := newStream(layout, "c")
	s.MaxFiles = 3
	c := startContainer(b, layout, s)
	data := bytes.Repeat([]byte(strings.Repeat("x", 99)+"\n"), 10_000)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if _, err := c.stdout.Write(data); err != nil {
			b.Fatal(err)
		}
	}
	c.end(b)
}
