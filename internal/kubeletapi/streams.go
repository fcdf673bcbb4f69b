package kubeletapi

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	remotecommandconsts "k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/kubelet/pkg/cri/streaming/portforward"
	remotecommandserver "k8s.io/kubelet/pkg/cri/streaming/remotecommand"
)

// idleTimeout is a kubelet's streamingConnectionIdleTimeout.
const idleTimeout = 4 * time.Hour

func (s *Server) exec(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommandserver.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ref, pod, ok := s.find(w, r, noPod)
	if !ok || !runs(w, pod, ref.Container) {
		return
	}
	if options.TTY {
		// A terminal hangs up with its client; other commands go on, as with a kubelet.
		var cancel context.CancelFunc
		w, r, cancel = untilHangup(w, r)
		defer cancel()
	}
	remotecommandserver.ServeExec(w, r, streams{s, ref}, ref.Pod, ref.UID, ref.Container, r.URL.Query()["command"], options,
		idleTimeout, remotecommandconsts.DefaultStreamCreationTimeout, remotecommandconsts.SupportedStreamingProtocols)
}

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	options, err := remotecommandserver.NewOptions(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ref, pod, ok := s.find(w, r, noPod)
	if !ok || !runs(w, pod, ref.Container) {
		return
	}
	w, r, cancel := untilHangup(w, r)
	defer cancel()
	remotecommandserver.ServeAttach(w, r, streams{s, ref}, ref.Pod, ref.UID, ref.Container, options,
		idleTimeout, remotecommandconsts.DefaultStreamCreationTimeout, remotecommandconsts.SupportedStreamingProtocols)
}

func (s *Server) portForward(w http.ResponseWriter, r *http.Request) {
	options, err := portforward.NewV4Options(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	ref, _, ok := s.find(w, r, noPod)
	if !ok {
		return
	}
	portforward.ServePortForward(w, r, streams{s, ref}, ref.Pod, ref.UID, options,
		idleTimeout, remotecommandconsts.DefaultStreamCreationTimeout, portforward.SupportedProtocols)
}

// runs answers 500, as a kubelet does, when a container does not run: after the upgrade of
// the connection there would be no status to tell it with.
func runs(w http.ResponseWriter, pod *corev1.Pod, container string) bool {
	for _, status := range statuses(pod) {
		if status.Name == container && status.State.Running != nil {
			return true
		}
	}
	http.Error(w, fmt.Sprintf("container not found (%q)", container), http.StatusInternalServerError)
	return false
}

// streams gives upstream's stream servers the Ref that they do not carry.
type streams struct {
	s   *Server
	ref Ref
}

// ExecInContainer implements remotecommand.Executor.
func (x streams) ExecInContainer(ctx context.Context, _ string, _ types.UID, _ string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, timeout time.Duration) error {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	return x.s.o.Streams.Exec(ctx, x.ref, cmd, in, out, errOut, tty, resize)
}

// AttachContainer implements remotecommand.Attacher.
func (x streams) AttachContainer(ctx context.Context, _ string, _ types.UID, _ string, in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return x.s.o.Streams.Attach(ctx, x.ref, in, out, errOut, tty, resize)
}

// PortForward implements portforward.PortForwarder.
func (x streams) PortForward(ctx context.Context, _ string, _ types.UID, port int32, stream io.ReadWriteCloser) error {
	return x.s.o.Streams.PortForward(ctx, x.ref, port, stream)
}
