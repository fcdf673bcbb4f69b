package provider

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// postStart runs the hook beside the loop. Its state is in the record: a hook that an
// agent did not see the end of is not repeated.
func (w *worker) postStart(c podplan.Container, a *attempt, s shared) {
	if a.rec.PostStart != podplan.HookRunning {
		return
	}
	rec, handler, ip := a.rec, c.Lifecycle.PostStart, first(s.ips)
	w.begin(fmt.Sprintf("poststart/%s/%d", c.Name, rec.Number), time.Second, func(ctx context.Context) (any, error) {
		return w.runHook(ctx, handler, c, rec, ip, a.ended), nil
	})
}

// collectHooks takes up the results of postStart hooks.
func (w *worker) collectHooks(pod *corev1.Pod) {
	for name, list := range w.attempts {
		a := list[len(list)-1]
		if a.rec.PostStart != podplan.HookRunning || a.exit != nil {
			continue
		}
		w.mu.Lock()
		o := w.ops[fmt.Sprintf("poststart/%s/%d", name, a.rec.Number)]
		done := o != nil && o.done
		w.mu.Unlock()
		if !done {
			continue
		}
		a.rec.PostStart = podplan.HookDone
		if err, failed := o.value.(error); failed {
			a.rec.PostStart = podplan.HookFailed
			c, _ := podplan.Find(pod, name)
			w.event(pod, &c, corev1.EventTypeWarning, "FailedPostStartHook", "PostStartHook failed")
			w.log.Warn("The postStart hook failed", "container", name, "err", err)
		}
		if err := a.rec.save(w.p.deps.Layout, string(w.uid)); err != nil {
			w.log.Error("Cannot record the end of a hook", "container", name, "err", err)
		}
	}
}

// preStopOnce runs the hook unless it is over, and says when it ended (zero if it did not
// run now). It is marked after it ran: an agent that dies meanwhile repeats the hook
// rather than lose it, as a kubelet does. One that a shorter grace period cut off is over.
func (w *worker) preStopOnce(ctx context.Context, pod *corev1.Pod, c podplan.Container, rec attemptRecord, until time.Time, ended <-chan struct{}) (time.Time, error) {
	if c.Lifecycle == nil || c.Lifecycle.PreStop == nil {
		return time.Time{}, nil
	}
	mark := filepath.Join(w.p.deps.Layout.AttemptRun(string(w.uid), rec.Container, rec.Number), preStopFile)
	if _, err := os.Lstat(mark); err == nil {
		return time.Time{}, nil
	}
	err := w.step("prestop", func() error {
		w.preStop(ctx, pod, c, rec, until, ended)
		if w.ctx.Err() != nil {
			return w.ctx.Err() // this agent stops, the hook is the next one's
		}
		return writeFile(mark, nil, 0o600)
	})
	return time.Now(), err
}

// preStop runs the hook until it ends, the container does, or the grace period is over.
func (w *worker) preStop(ctx context.Context, pod *corev1.Pod, c podplan.Container, rec attemptRecord, until time.Time, ended <-chan struct{}) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	ip := pod.Status.PodIP
	if err := w.runHook(ctx, c.Lifecycle.PreStop, c, rec, ip, ended); err != nil {
		w.event(pod, &c, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		w.log.Warn("The preStop hook failed", "container", c.Name, "err", err)
	}
}

// runHook runs one handler; it ends with the container.
func (w *worker) runHook(ctx context.Context, h *corev1.LifecycleHandler, c podplan.Container, rec attemptRecord, podIP string, ended <-chan struct{}) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	over := make(chan struct{})
	defer close(over)
	go func() {
		select {
		case <-ended:
			cancel()
		case <-over:
		}
	}()
	switch {
	case h.Exec != nil:
		return w.execHook(ctx, h.Exec.Command, rec)
	case h.HTTPGet != nil:
		return httpHook(ctx, h.HTTPGet, c, podIP)
	case h.Sleep != nil:
		died(ctx, nil, time.Duration(h.Sleep.Seconds)*time.Second)
		return nil
	}
	return errors.New("run hook: no handler that is known")
}

func (w *worker) execHook(ctx context.Context, command []string, rec attemptRecord) error {
	output := &limitedBuffer{}
	code, err := w.p.deps.Executor.Exec(ctx, systemd.ExecRequest{
		Unit: rec.Unit, LaunchSpec: w.p.deps.Layout.LaunchSpec(string(w.uid), rec.Container, rec.Number),
		Args: command, Stdout: output, Stderr: output,
	})
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	if code != 0 {
		return fmt.Errorf("run hook: command exited with %d: %s", code, output.Bytes())
	}
	return nil
}

func httpHook(ctx context.Context, get *corev1.HTTPGetAction, c podplan.Container, podIP string) error {
	port, err := portOf(get.Port, c)
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	host := get.Host
	if host == "" {
		host = podIP
	}
	scheme := "http"
	if get.Scheme == corev1.URISchemeHTTPS {
		scheme = "https"
	}
	path, err := url.Parse(get.Path)
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	target := url.URL{Scheme: scheme, Host: net.JoinHostPort(host, strconv.Itoa(port)), Path: path.Path, RawQuery: path.RawQuery}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target.String(), nil)
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	for _, header := range get.HTTPHeaders {
		if header.Name == "Host" {
			req.Host = header.Value
			continue
		}
		req.Header.Add(header.Name, header.Value)
	}
	return doHook(req)
}

func doHook(req *http.Request) error {
	transport := &http.Transport{
		// A hook goes to a pod of ours, whose certificate no authority of ours has signed.
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // see above
		Proxy:           nil, DisableKeepAlives: true,
	}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Do(req)
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10)
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("run hook: %s answered %s", req.URL, resp.Status)
	}
	return nil
}

func portOf(port intstr.IntOrString, c podplan.Container) (int, error) {
	if port.Type == intstr.Int {
		return port.IntValue(), nil
	}
	for _, p := range c.Ports {
		if p.Name == port.StrVal {
			return int(p.ContainerPort), nil
		}
	}
	if n, err := strconv.Atoi(port.StrVal); err == nil {
		return n, nil
	}
	return 0, fmt.Errorf("container %s has no port named %q", c.Name, port.StrVal)
}
