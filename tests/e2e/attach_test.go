package e2e

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/remotecommand"

	"github.com/vk-metal/vk-metal/tests/registry"
	"github.com/vk-metal/vk-metal/tests/workload"
)

// screen is what a client has seen so far.
type screen struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.Write(p)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.buf.String()
}

// session is an attached client that types.
type session struct {
	*env
	screen
	keyboard io.WriteCloser
	done     chan error
}

// attach joins the pod's first container.
func (e *env) attach(pod *corev1.Pod, tty bool) *session {
	e.Helper()
	return e.attachTo(pod, "", tty)
}

func (e *env) attachTo(pod *corev1.Pod, container string, tty bool) *session {
	e.Helper()
	// The kernel's pipe, which takes a line also where the session never comes up to read it.
	reader, writer, err := os.Pipe()
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _, _ = reader.Close(), writer.Close() })
	s := &session{env: e, keyboard: writer, done: make(chan error, 1)}
	go func() {
		s.done <- workload.Attach(e.Context(), e.c.Config, pod, container, remotecommand.StreamOptions{Stdin: reader, Stdout: &s.screen, Tty: tty})
	}()
	return s
}

// says types a line and waits for what it must lead to.
func (s *session) says(line, want string) {
	s.Helper()
	if _, err := fmt.Fprintln(s.keyboard, line); err != nil {
		s.Fatal(err)
	}
	s.eventually(time.Minute, func() string {
		if got := s.String(); !strings.Contains(got, want) {
			return fmt.Sprintf("%q led to %q, want %q", line, got, want)
		}
		return ""
	})
}

// ends waits for the end of the session.
func (s *session) ends() {
	s.Helper()
	select {
	case err := <-s.done:
		if err != nil {
			s.Errorf("session: %v", err)
		}
	case <-time.After(time.Minute):
		s.Error("still attached")
	}
}

func TestAttachStdinOnce(t *testing.T) {
	e := setup(t)
	pod := e.busybox("once", "cat; echo ended")
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	pod.Spec.Containers[0].Stdin, pod.Spec.Containers[0].StdinOnce = true, true
	e.create(pod)
	s := e.attach(e.waitPod("once", podTimeout, running), false)
	s.says("hello", "hello\n")
	_ = s.keyboard.Close()
	s.ends()
	if got := s.String(); got != "hello\nended\n" {
		t.Errorf("the client saw %q", got)
	}
	e.waitPod("once", podTimeout, phase(corev1.PodSucceeded))
	if got := e.logs("once", &corev1.PodLogOptions{}); got != "hello\nended\n" {
		t.Errorf("log is %q", got)
	}
}

// TestAttachTerminal talks to one shell on a terminal, through the death of the agent and
// of the log writer.
func TestAttachTerminal(t *testing.T) {
	e := setup(t)
	pod := e.busybox("shell", "exec sh")
	pod.Spec.Containers[0].Stdin, pod.Spec.Containers[0].TTY = true, true
	e.create(pod)
	pod = e.waitPod("shell", podTimeout, running)
	s := e.attach(pod, true)
	s.says("tty", "tty\r\n/dev/pts/0\r\n")
	s.says("KEPT=kept$((20+3)); test -c /dev/console && echo console$((1+1)) >/dev/console", "console2\r\n")
	for _, unit := range []string{"vk-metal.service", "vk-metal-log.service"} {
		e.crash(pod.Spec.NodeName, unit)
	}
	again := e.reattach(pod, "")
	again.says("echo it is $KEPT", "it is kept23\r\n")
	again.says("exit 3", "exit 3\r\n")
	again.ends()
	e.waitPod("shell", podTimeout, restarted(1))
	if got := e.logs("shell", &corev1.PodLogOptions{Previous: true}); !strings.Contains(got, "console2\r\n") || !strings.Contains(got, "it is kept23\r\n") {
		t.Errorf("log is %q", got)
	}
	if code := e.pod("shell").Status.ContainerStatuses[0].LastTerminationState.Terminated.ExitCode; code != 3 {
		t.Errorf("exit code %d", code)
	}
}

// crash kills a unit of a machine and waits until systemd has started it anew.
func (e *env) crash(node, unit string) {
	e.Helper()
	state := func() (string, error) {
		return e.machine(node).Run(e.Context(), "systemctl", "show", "--property=ActiveState,MainPID", unit)
	}
	before, err := state()
	if err != nil {
		e.Fatal(err)
	}
	e.on(node, "systemctl", "kill", "--signal=KILL", unit)
	e.eventually(time.Minute, func() string { // it is active, too, until systemd has noticed
		if now, err := state(); err != nil || now == before || !strings.Contains(now, "ActiveState=active") {
			return fmt.Sprintf("%s is %s (%v)", unit, now, err)
		}
		return ""
	})
}

// reattach tries until the new agent serves.
func (e *env) reattach(pod *corev1.Pod, container string) *session {
	var s *session
	e.eventually(time.Minute, func() string {
		s = e.attachTo(pod, container, true)
		_, _ = fmt.Fprintln(s.keyboard)
		for range 20 {
			if s.String() != "" {
				return ""
			}
			select {
			case err := <-s.done:
				return fmt.Sprintf("attach: %v", err)
			case <-time.After(100 * time.Millisecond):
			}
		}
		return "no prompt"
	})
	return s
}

// TestKubectlRun is a command that somebody types, on a terminal: it ends with the shell, and
// takes its pod along.
func TestKubectlRun(t *testing.T) {
	e := setup(t)
	line := strings.Join([]string{
		e.c.ControlPlane.Kubectl(), "--kubeconfig", e.c.ControlPlane.Kubeconfig(), "--namespace", e.ns,
		"run", "typed", "--rm", "-it", "--restart=Never", "--image=" + registry.Busybox, "--", "sh",
	}, " ")
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer writer.Close()
	s := &session{env: e, keyboard: writer, done: make(chan error, 1)}
	cmd := exec.CommandContext(e.Context(), "script", "--quiet", "--return", "--echo", "never", "--command", line, "/dev/null") // a terminal for it
	cmd.Stdin, cmd.Stdout, cmd.Stderr = reader, &s.screen, &s.screen
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	reader.Close()
	go func() { s.done <- cmd.Wait() }()
	e.waitPod("typed", podTimeout, running)
	e.eventually(time.Minute, func() string { // what comes before the session is not shown: ask for another prompt
		if _, err := fmt.Fprintln(s.keyboard); err != nil || !strings.Contains(s.String(), "# ") {
			return fmt.Sprintf("no prompt (%v): %q", err, s.String())
		}
		return ""
	})
	s.says("tty; echo sum $((40+2))", "sum 42\r\n")
	s.says("exit 0", `pod "typed" deleted`)
	s.ends()
	e.waitGone("typed", time.Minute)
}
