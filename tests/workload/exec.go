package workload

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
)

// Exec runs a command in a pod's container through the API server ("" is the first
// container) and returns what it wrote. A command that exits with another code than 0
// is a k8s.io/client-go/util/exec.CodeExitError.
func Exec(ctx context.Context, config *rest.Config, pod *corev1.Pod, container string, stdin io.Reader, argv ...string) (stdout, stderr string, err error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", "", err
	}
	url := client.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: container, Command: argv, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return "", "", fmt.Errorf("exec in %s: %w", pod.Name, err)
	}
	var out, errs bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errs})
	return out.String(), errs.String(), err
}

// ExecTTY runs a command on a terminal of the given size and returns what it showed.
func ExecTTY(ctx context.Context, config *rest.Config, pod *corev1.Pod, size remotecommand.TerminalSize, argv ...string) (string, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return "", err
	}
	url := client.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: argv, Stdin: true, Stdout: true, TTY: true}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return "", fmt.Errorf("exec in %s: %w", pod.Name, err)
	}
	var out bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{
		Stdin: strings.NewReader(""), Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{size: &size},
	})
	return out.String(), err
}

// oneSize is a terminal that is never resized.
type oneSize struct{ size *remotecommand.TerminalSize }

// Next returns the size once, then the end.
func (o *oneSize) Next() *remotecommand.TerminalSize {
	size := o.size
	o.size = nil
	return size
}

// Attach joins a client to a pod's container ("" is the first one), with what options has.
func Attach(ctx context.Context, config *rest.Config, pod *corev1.Pod, container string, options remotecommand.StreamOptions) error {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	url := client.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("attach").
		VersionedParams(&corev1.PodAttachOptions{
			Container: container, Stdin: options.Stdin != nil, Stdout: options.Stdout != nil, Stderr: options.Stderr != nil, TTY: options.Tty,
		}, scheme.ParameterCodec).URL()
	executor, err := remotecommand.NewSPDYExecutor(config, "POST", url)
	if err != nil {
		return fmt.Errorf("attach to %s: %w", pod.Name, err)
	}
	return executor.StreamWithContext(ctx, options)
}
