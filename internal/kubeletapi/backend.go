package kubeletapi

import (
	"context"
	"io"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/remotecommand"
	statsv1alpha1 "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// Ref names a container, or with an empty Container a pod, that is known to exist.
type Ref struct {
	Namespace, Pod string
	UID            types.UID
	Container      string
}

// Pods is what runs here.
type Pods interface {
	// Pods returns every pod of this node with its current status; they are not changed.
	Pods() []*corev1.Pod
	// Pod returns one by name.
	Pod(namespace, name string) (*corev1.Pod, bool)
	// Logs writes a container's log; an error before the first byte is answered with 400 and its text.
	Logs(ctx context.Context, ref Ref, opts *corev1.PodLogOptions, stdout, stderr io.Writer) error
}

// Streams are the interactive calls into running containers. nil streams are not wanted.
type Streams interface {
	// Exec runs a command; one that ran and failed gives a bare utilexec.ExitError.
	Exec(ctx context.Context, ref Ref, cmd []string, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// Attach copies a container's streams until it ends.
	Attach(ctx context.Context, ref Ref, stdin io.Reader, stdout, stderr io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error
	// PortForward copies one stream to a port of the pod until either side ends.
	PortForward(ctx context.Context, ref Ref, port int32, stream io.ReadWriteCloser) error
}

// Stats has the figures for /stats/summary and the metrics made from them.
type Stats interface {
	// Summary may leave out everything but CPU and memory.
	Summary(ctx context.Context, onlyCPUAndMemory bool) (*statsv1alpha1.Summary, error)
}
