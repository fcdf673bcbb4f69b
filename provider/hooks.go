package provider

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// postStart runs the hook beside the loop. Its state is in the record: a hook that an
// agent did not see the end of is not repeated.
func (w *worker) postStart(pod *corev1.Pod, c podplan.Container, a *attempt, s shared) {
	if a.rec.PostStart != podplan.HookRunning {
		return
	}
	rec, handler, ip := a.rec, c.Lifecycle.PostStart, first(s.ips)
	w.begin(fmt.Sprintf("poststart/%s/%d", c.Name, rec.Number), time.Second, func(ctx context.Context) (any, error) {
		return w.runHook(ctx, pod, handler, c, rec, ip, a.ended), nil
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
	if err := w.runHook(ctx, pod, c.Lifecycle.PreStop, c, rec, ip, ended); err != nil {
		w.event(pod, &c, corev1.EventTypeWarning, "FailedPreStopHook", "PreStopHook failed")
		w.log.Warn("The preStop hook failed", "container", c.Name, "err", err)
	}
}

// runHook runs one handler; it ends with the container.
func (w *worker) runHook(ctx context.Context, pod *corev1.Pod, h *corev1.LifecycleHandler, c podplan.Container, rec attemptRecord, podIP string, ended <-chan struct{}) error {
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
		return w.httpHook(ctx, h.HTTPGet, pod, c, podIP)
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

func (w *worker) httpHook(ctx context.Context, get *corev1.HTTPGetAction, pod *corev1.Pod, c podplan.Container, podIP string) error {
	plain, err := probes.Hook(ctx, get, probes.Target{Container: c.Container, PodIP: podIP})
	if err != nil {
		return fmt.Errorf("run hook: %w", err)
	}
	if plain {
		w.event(pod, nil, corev1.EventTypeWarning, "LifecycleHTTPFallback", fmt.Sprintf(
			"request to HTTPS lifecycle hook %s got HTTP response, retry with HTTP succeeded", net.JoinHostPort(cmp.Or(get.Host, podIP), get.Port.String())))
	}
	return nil
}
