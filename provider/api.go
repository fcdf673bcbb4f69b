package provider

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/utils/exec"

	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// The kubelet API server (internal/kubeletapi) is written against these methods.

// Errors of the lookups below; the API server turns them into 404 and 400.
var (
	ErrPodNotFound       = errors.New("pod not found")
	ErrContainerNotFound = errors.New("container not found")
	// ErrNotRunning is wrapped by exec, attach and port-forward on a container or pod that does not run.
	ErrNotRunning = errors.New("container is not running")
)

// ContainerRef names a container; UID may be empty and else must match.
type ContainerRef struct {
	Namespace, Pod string
	UID            types.UID
	Container      string
}

// ContainerLog says where the log of one attempt is.
type ContainerLog struct {
	PodUID    types.UID
	Container string
	Attempt   int
	Unit      string
	// Path is the CRI log file; it may not exist yet.
	Path string
	// Running says that more may be written: a follower waits. It is asked anew with Done.
	Running bool
	// Done is closed when the attempt has ended and its log is complete.
	Done <-chan struct{}
}

// LogNotReadyError says that a container has not started yet; the API answers 400 with its text.
type LogNotReadyError struct{ Pod, Container, Reason string }

// Error is the kubelet's sentence.
func (e *LogNotReadyError) Error() string {
	return fmt.Sprintf("container %q in pod %q is waiting to start: %s", e.Container, e.Pod, e.Reason)
}

// NoPreviousError says that a container has no attempt before the current one; the API
// answers 400 with its text.
type NoPreviousError struct{ Pod, Container string }

// Error is the kubelet's sentence.
func (e *NoPreviousError) Error() string {
	return fmt.Sprintf("previous terminated container %q in pod %q not found", e.Container, e.Pod)
}

// Pods returns every pod of this node with its current status. The caller may keep the
// pods but must not change them.
func (p *Provider) Pods() []*corev1.Pod {
	var pods []*corev1.Pod
	for _, w := range p.all() {
		pods = append(pods, w.view0())
	}
	return pods
}

// Pod returns one pod by name with its current status.
func (p *Provider) Pod(namespace, name string) (*corev1.Pod, bool) {
	w, err := p.find(ContainerRef{Namespace: namespace, Pod: name})
	if err != nil {
		return nil, false
	}
	return w.view0(), true
}

// view0 is the pod with the status that this node last computed.
func (w *worker) view0() *corev1.Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.hasRun {
		return w.pod
	}
	pod := *w.pod
	pod.Status = w.status
	return &pod
}

// find returns the worker of a pod: of several with one name the one that the API has.
func (p *Provider) find(ref ContainerRef) (*worker, error) {
	var found *worker
	for _, w := range p.all() {
		pod, gone := w.current()
		if pod.Namespace != ref.Namespace || pod.Name != ref.Pod || ref.UID != "" && !w.is(pod, ref.UID) {
			continue
		}
		if found == nil || !gone {
			found = w
		}
	}
	if found == nil {
		return nil, ErrPodNotFound
	}
	return found, nil
}

// is says whether the UID is the pod's, or that of the mirror which shows it in the API.
func (w *worker) is(pod *corev1.Pod, uid types.UID) bool {
	shown := w.shownAs(pod)
	return pod.UID == uid || shown != nil && shown.UID == uid
}

// running finds the running attempt of a container.
func (p *Provider) running(ref ContainerRef) (*worker, shown, error) {
	w, err := p.find(ref)
	if err != nil {
		return nil, shown{}, err
	}
	pod, _ := w.current()
	if _, ok := podplan.Find(pod, ref.Container); !ok {
		return nil, shown{}, fmt.Errorf("%w: %s", ErrContainerNotFound, ref.Container)
	}
	list := w.shown(ref.Container)
	if len(list) == 0 || !list[len(list)-1].running {
		return nil, shown{}, fmt.Errorf("container %s: %w", ref.Container, ErrNotRunning)
	}
	return w, list[len(list)-1], nil
}

// ContainerLog finds the log of a container's current or previous attempt. Errors:
// ErrPodNotFound, ErrContainerNotFound, *LogNotReadyError, *NoPreviousError.
func (p *Provider) ContainerLog(_ context.Context, ref ContainerRef, previous bool) (ContainerLog, error) {
	w, err := p.find(ref)
	if err != nil {
		return ContainerLog{}, err
	}
	pod := w.view0()
	c, ok := podplan.Find(pod, ref.Container)
	if !ok {
		return ContainerLog{}, fmt.Errorf("%w: %s", ErrContainerNotFound, ref.Container)
	}
	list := w.shown(ref.Container)
	if len(list) == 0 {
		if a, ok := p.oldLog(pod, c); ok {
			list = append(list, a)
		}
	}
	at := len(list) - 1
	if previous {
		// A container that waits for its restart has its last attempt as the previous one.
		if cs, _ := statusOf(pod, c.Name); cs.State.Waiting == nil {
			at--
		}
		if at < 0 {
			return ContainerLog{}, &NoPreviousError{Pod: pod.Name, Container: c.Name}
		}
	}
	if at < 0 {
		reason := "ContainerCreating"
		if cs, _ := statusOf(pod, c.Name); cs.State.Waiting != nil {
			reason = cs.State.Waiting.Reason
		}
		return ContainerLog{}, &LogNotReadyError{Pod: pod.Name, Container: c.Name, Reason: reason}
	}
	a := list[at]
	return ContainerLog{
		PodUID: pod.UID, Container: c.Name, Attempt: a.number, Unit: a.unit, Running: !a.over(), Done: a.done,
		Path: p.deps.Layout.ContainerLog(pod.Namespace, pod.Name, string(pod.UID), c.Name, a.number),
	}, nil
}

// oldLog is the attempt of a pod that ended before a reboot: only its log is left.
func (p *Provider) oldLog(pod *corev1.Pod, c podplan.Container) (shown, bool) {
	n := lastLog(p.deps.Layout, pod, c.Name)
	if n < 0 {
		return shown{}, false
	}
	closed := make(chan struct{})
	close(closed)
	return shown{number: n, unit: podplan.UnitName(string(pod.UID), c.Name, n), done: closed}, true
}

// Exec runs a command in a running container. A command that ran and failed gives a bare
// utilexec.ExitError. stderr is nil with tty. The end of ctx kills the command.
func (p *Provider) Exec(ctx context.Context, ref ContainerRef, cmd []string, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	w, a, err := p.running(ref)
	if err != nil {
		return err
	}
	req := systemd.ExecRequest{
		Unit: a.unit, LaunchSpec: p.deps.Layout.LaunchSpec(string(w.uid), ref.Container, a.number),
		Args: cmd, Stdin: stdin, TTY: tty,
	}
	// A nil *Writer in an interface would not be nil there.
	if stdout != nil {
		req.Stdout = stdout
	}
	if stderr != nil {
		req.Stderr = stderr
	}
	if resize != nil {
		req.Resize = sizes(ctx, resize)
	}
	code, err := p.deps.Executor.Exec(ctx, req)
	if err != nil {
		return fmt.Errorf("exec in container %s: %w", ref.Container, err)
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command terminated with exit code %d", code), Code: code}
	}
	return nil
}

// sizes converts terminal sizes until the source or ctx ends.
func sizes(ctx context.Context, in <-chan remotecommand.TerminalSize) <-chan systemd.TermSize {
	out := make(chan systemd.TermSize)
	go func() {
		defer close(out)
		for {
			select {
			case <-ctx.Done():
				return
			case s, ok := <-in:
				if !ok {
					return
				}
				select {
				case out <- systemd.TermSize{Width: s.Width, Height: s.Height}:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return out
}

// Attach joins a client to a running container's streams: output from now on, until the
// container ends, the client's input does, or ctx.
func (p *Provider) Attach(ctx context.Context, ref ContainerRef, stdin io.Reader, stdout, stderr io.WriteCloser, _ bool, resize <-chan remotecommand.TerminalSize) error {
	w, a, err := p.running(ref)
	if err != nil {
		return err
	}
	streams := AttachStreams{Stdin: stdin}
	// A nil *Writer in an interface would not be nil there.
	if stdout != nil {
		streams.Stdout = stdout
	}
	if stderr != nil {
		streams.Stderr = stderr
	}
	if resize != nil {
		streams.Resize = sizes(ctx, resize)
	}
	if err := p.deps.Logs.Attach(ctx, string(w.uid), ref.Container, a.number, streams); err != nil {
		return fmt.Errorf("attach to container %s: %w", ref.Container, err)
	}
	return nil
}

// PortForward copies one stream to a port on the pod's loopback, until either side ends.
func (p *Provider) PortForward(ctx context.Context, ref ContainerRef, port int32, stream io.ReadWriteCloser) error {
	w, err := p.find(ref)
	if err != nil {
		return err
	}
	pod, _ := w.current()
	address := net.JoinHostPort("localhost", strconv.Itoa(int(port)))
	var conn net.Conn
	if pod.Spec.HostNetwork {
		conn, err = (&net.Dialer{}).DialContext(ctx, "tcp", address)
	} else {
		conn, err = p.deps.Network.Dial(ctx, string(pod.UID), "tcp", address)
	}
	if err != nil {
		return fmt.Errorf("forward to port %d of pod %s/%s: %w", port, pod.Namespace, pod.Name, err)
	}
	return copyBoth(ctx, stream, conn)
}

// copyBoth passes a half-close on and ends when the pod's side does.
func copyBoth(ctx context.Context, stream io.ReadWriteCloser, conn net.Conn) error {
	defer conn.Close()
	defer stream.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close(); stream.Close() })
	defer stop()
	go func() {
		_, _ = io.Copy(conn, stream) //nolint:errcheck // the other direction tells
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite()
		}
	}()
	if _, err := io.Copy(stream, conn); err != nil && ctx.Err() == nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("forward port: %w", err)
	}
	return nil
}

// ExecProbe runs an exec probe; it makes the Provider a probes.Execer.
func (p *Provider) ExecProbe(ctx context.Context, target probes.Target, command []string) (int, []byte, error) {
	w := p.byUID(types.UID(target.PodUID))
	if w == nil {
		return 0, nil, ErrPodNotFound
	}
	output := &limitedBuffer{}
	code, err := p.deps.Executor.Exec(ctx, systemd.ExecRequest{
		Unit:       podplan.UnitName(target.PodUID, target.Container.Name, target.Attempt),
		LaunchSpec: p.deps.Layout.LaunchSpec(target.PodUID, target.Container.Name, target.Attempt),
		Args:       command, Stdout: output, Stderr: output,
	})
	return code, output.Bytes(), err
}
