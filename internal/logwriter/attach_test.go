package logwriter_test

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs"
	"github.com/vk-metal/vk-metal/internal/logs/logstream"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// shared is a buffer that grows while it is looked at.
type sharedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *sharedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *sharedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// attach joins a client and returns what ends with it.
func attach(t *testing.T, ctx context.Context, c *container, stdin io.Reader) (out, errs *sharedBuffer, done chan error) {
	out, errs, done = &sharedBuffer{}, &sharedBuffer{}, make(chan error, 1)
	go func() {
		done <- logs.Attach(ctx, c.layout, c.PodUID, c.Container, c.Attempt, logs.AttachOptions{Stdin: stdin, Stdout: out, Stderr: errs})
	}()
	return out, errs, done
}

func ended(t *testing.T, done chan error) {
	t.Helper()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the client is still attached")
	}
}

// saying writes until the client is attached and has it.
func saying(t *testing.T, file *os.File, text string, out *sharedBuffer) {
	t.Helper()
	eventually(t, func() bool {
		_, _ = file.WriteString(text)
		time.Sleep(5 * time.Millisecond)
		return strings.Contains(out.String(), text)
	})
}

func TestAttachOutput(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c := startContainer(t, layout, newStream(layout, "c"))
	_, _ = c.stdout.WriteString("before\n")
	eventually(t, func() bool { data, _ := os.ReadFile(c.LogFile); return len(data) > 0 })
	out, errs, done := attach(t, t.Context(), c, nil)
	saying(t, c.stdout, "a prompt without an end ", out)
	saying(t, c.stderr, "and stderr\n", errs)
	big := noise(7, 8<<20)
	_, _ = c.stdout.Write([]byte("|"))
	_, _ = c.stdout.Write(big)
	c.end(t)
	ended(t, done)
	_, got, _ := strings.Cut(out.String(), "|")
	compare(t, "attached client", []byte(got), big)
	if strings.Contains(out.String(), "before") {
		t.Error("output from before the attachment was sent")
	}
}

func TestAttachToNothing(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	err := logs.Attach(t.Context(), layout, "uid", "c", 0, logs.AttachOptions{Stdout: io.Discard})
	if err == nil || !strings.Contains(err.Error(), "not running") {
		t.Errorf("error %v", err)
	}
}

func openStdin(t *testing.T, c *container) *os.File {
	t.Helper()
	file, err := os.Open(logs.StdinPath(c.layout, c.PodUID, c.Container, c.Attempt)) // does not block
	if err != nil {
		t.Fatal(err)
	}
	return file
}

func TestStdinOnce(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	s := newStream(layout, "c")
	s.Stdin, s.StdinOnce = true, true
	c := startContainer(t, layout, s)
	stdin := openStdin(t, c)
	want := noise(3, 3<<20)
	out, _, done := attach(t, t.Context(), c, bytes.NewReader(want))
	got, err := io.ReadAll(stdin) // to its end
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "stdin", got, want)
	saying(t, c.stdout, "output goes on", out)
	c.end(t)
	ended(t, done)
}

func TestStdinStaysOpen(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	s := newStream(layout, "c")
	s.Stdin = true
	c := startContainer(t, layout, s)
	stdin := openStdin(t, c)
	buf := make([]byte, 3)
	for _, text := range []string{"one", "two"} {
		_, _, done := attach(t, t.Context(), c, strings.NewReader(text))
		ended(t, done) // the end of the input detaches
		if _, err := io.ReadFull(stdin, buf); err != nil || string(buf) != text {
			t.Fatalf("read %q, %v", buf, err)
		}
	}
	c.end(t)
}

// TestStalledClient: a client that does not read holds its container back, no other.
func TestStalledClient(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c, other := startContainer(t, layout, newStream(layout, "c")), startContainer(t, layout, newStream(layout, "other"))
	ctx, cancel := context.WithCancel(t.Context())
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- logs.Attach(ctx, layout, "uid", "c", 0, logs.AttachOptions{Stdout: writer})
	}()
	want := noise(5, 16<<20)
	go func() {
		for !bytesRead(c.LogFile) {
			_, _ = c.stdout.WriteString("\n")
		}
		_, _ = c.stdout.Write(want)
		_ = c.stdout.Close()
		_ = c.stderr.Close()
	}()
	_, _ = reader.Read(make([]byte, 1))
	_, _ = other.stdout.WriteString("quick\n")
	other.end(t)
	cancel()
	_ = reader.Close()
	<-done
	c.wait(t)
	out, _ := c.read(t)
	compare(t, "log", bytes.TrimLeft(out, "\n"), bytes.TrimLeft(want, "\n"))
}

func bytesRead(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Size() > 1<<10
}

// terminalContainer is a container with a terminal, as the launcher makes it.
func terminalContainer(t *testing.T, layout paths.Layout) (c *container, slave *os.File) {
	t.Helper()
	s := newStream(layout, "tty")
	s.TTY, s.Stdin = true, true
	if _, _, err := logs.Create(layout, s); err != nil {
		t.Fatal(err)
	}
	master, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Skip("needs pseudo-terminals")
	}
	defer unix.Close(master)
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		t.Fatal(errno)
	}
	to := logs.TerminalOf(layout, s.PodUID, s.Container, s.Attempt)
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(socket)
	if err := unix.Connect(socket, &unix.SockaddrUnix{Name: to.Socket}); err != nil {
		t.Fatal(err)
	}
	packet := append([]byte{logstream.PacketTerminal}, to.Stream...)
	if err := unix.Sendmsg(socket, packet, unix.UnixRights(master), nil, 0); err != nil {
		t.Fatal(err)
	}
	answer := make([]byte, 100)
	if n, err := unix.Read(socket, answer); err != nil || n != 1 || answer[0] != logstream.PacketOK {
		t.Fatalf("answer %q, %v", answer[:max(n, 0)], err)
	}
	return &container{Stream: s, layout: layout}, os.NewFile(fd, "slave")
}

func TestTerminal(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c, slave := terminalContainer(t, layout)
	sizes := make(chan logs.Size, 1)
	sizes <- logs.Size{Width: 123, Height: 45}
	keyboard, typist := io.Pipe()
	out := &sharedBuffer{}
	done := make(chan error, 1)
	go func() {
		done <- logs.Attach(t.Context(), layout, c.PodUID, c.Container, 0, logs.AttachOptions{Stdin: keyboard, Stdout: out, Resize: sizes})
	}()
	saying(t, slave, "prompt# ", out)
	eventually(t, func() bool {
		size, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ)
		return err == nil && size.Col == 123 && size.Row == 45
	})
	if _, err := typist.Write([]byte("typed\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 100)
	if n, err := slave.Read(buf); err != nil || string(buf[:n]) != "typed\n" {
		t.Errorf("read %q, %v", buf[:max(n, 0)], err)
	}
	_, _ = slave.WriteString("\nlast line\n")
	_ = slave.Close()
	c.wait(t)
	ended(t, done)
	if !strings.HasSuffix(out.String(), "typed\r\n\r\nlast line\r\n") {
		t.Errorf("the client saw %q", out.String())
	}
	got, _ := c.read(t)
	if !bytes.HasSuffix(got, []byte("typed\r\n\r\nlast line\r\n")) {
		t.Errorf("the log has %q", got)
	}
	// The stream's directory goes first, and ends the wait; then what is beside it.
	eventually(t, func() bool {
		left, err := filepath.Glob(layout.LogStreams() + "/uid*")
		return err == nil && len(left) == 0
	})
}

// TestTwoClientsShareATerminal: both see the same and both type, the size is that of whoever
// changed it last, and one goes without the other.
func TestTwoClientsShareATerminal(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c, slave := terminalContainer(t, layout)
	size := func(width, height uint16) func() bool {
		return func() bool {
			now, err := unix.IoctlGetWinsize(int(slave.Fd()), unix.TIOCGWINSZ)
			return err == nil && now.Col == width && now.Row == height
		}
	}
	type client struct {
		out   *sharedBuffer
		typed *io.PipeWriter
		sizes chan logs.Size
		leave context.CancelFunc
		done  chan error
	}
	join := func() client {
		ctx, leave := context.WithCancel(t.Context())
		keyboard, typed := io.Pipe()
		k := client{&sharedBuffer{}, typed, make(chan logs.Size, 1), leave, make(chan error, 1)}
		go func() {
			k.done <- logs.Attach(ctx, layout, c.PodUID, c.Container, 0, logs.AttachOptions{Stdin: keyboard, Stdout: k.out, Resize: k.sizes})
		}()
		return k
	}
	one, two := join(), join()
	saying(t, slave, "prompt# ", one.out)
	saying(t, slave, "prompt# ", two.out)
	one.sizes <- logs.Size{Width: 100, Height: 30}
	eventually(t, size(100, 30))
	two.sizes <- logs.Size{Width: 80, Height: 24}
	eventually(t, size(80, 24))
	one.sizes <- logs.Size{Width: 132, Height: 50}
	eventually(t, size(132, 50))
	for text, k := range map[string]client{"from one\n": one, "from two\n": two} {
		if _, err := k.typed.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 100)
		if n, err := slave.Read(buf); err != nil || string(buf[:n]) != text {
			t.Errorf("read %q, %v", buf[:max(n, 0)], err)
		}
	}
	for _, k := range []client{one, two} {
		eventually(t, func() bool {
			return strings.Contains(k.out.String(), "from one") && strings.Contains(k.out.String(), "from two")
		})
	}
	one.leave()
	select {
	case <-one.done:
	case <-time.After(time.Minute):
		t.Fatal("the first client is still attached")
	}
	saying(t, slave, "still here", two.out)
	_ = slave.Close()
	c.wait(t)
	ended(t, two.done)
	two.leave()
}

// TestTerminalFlood: more than terminal and FIFO hold, and nothing is lost at the end.
func TestTerminalFlood(t *testing.T) {
	layout := node(t)
	startWriter(t, layout, "")
	c, slave := terminalContainer(t, layout)
	line := strings.Repeat("x", 100)
	for range 20_000 {
		if _, err := slave.WriteString(line + "\n"); err != nil {
			t.Fatal(err)
		}
	}
	_ = slave.Close()
	c.wait(t)
	got, _ := c.read(t)
	compare(t, "log", got, []byte(strings.Repeat(line+"\r\n", 20_000)))
}
