package provider

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// stopSignal is the signal that asks the container to stop: the pod's, else the image's.
func stopSignal(c podplan.Container, image podplan.Image) string {
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		return string(*c.Lifecycle.StopSignal)
	}
	return image.StopSignal
}

// signalOf understands SIGTERM, TERM and numbers, real-time signals too; TERM otherwise.
func signalOf(name string) syscall.Signal {
	name = strings.ToUpper(name)
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return syscall.Signal(n)
	}
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	for base, n := range map[string]int{"SIGRTMIN+": 34, "SIGRTMAX-": 64} {
		if offset, err := strconv.Atoi(strings.TrimPrefix(name, base)); err == nil && strings.HasPrefix(name, base) {
			if base == "SIGRTMAX-" {
				offset = -offset
			}
			return syscall.Signal(n + offset)
		}
	}
	return unix.SIGTERM
}

// kill begins the kills that the decision asks for, shortens those that go on, and takes
// up those that another agent began.
func (w *worker) kill(pod *corev1.Pod, d podplan.Decision) {
	wanted := map[*attempt]podplan.Kill{}
	for _, k := range d.Kill {
		if a := w.attempt(k.Container, k.Attempt); a != nil && a.exit == nil {
			wanted[a] = k
		}
	}
	for _, list := range w.attempts {
		for _, a := range list {
			k, asked := wanted[a]
			if a.exit != nil || !asked && a.rec.Kill == nil {
				continue
			}
			if err := w.killAttempt(pod, a, k, asked, d.Ending); err != nil {
				w.log.Error("Cannot begin to stop a container", "container", a.rec.Container, "err", err)
				w.wakeAfter(time.Second)
			}
		}
	}
}

func (w *worker) attempt(container string, number int) *attempt {
	for _, a := range w.attempts[container] {
		if a.rec.Number == number {
			return a
		}
	}
	return nil
}

func (w *worker) killAttempt(pod *corev1.Pod, a *attempt, k podplan.Kill, asked, podEnds bool) error {
	c, ok := podplan.Find(pod, a.rec.Container)
	if !ok {
		c = podplan.Container{Container: corev1.Container{Name: a.rec.Container}, Role: podplan.RoleMain}
	}
	now := time.Now()
	if a.rec.Kill == nil {
		a.rec.Kill = &killRecord{Begun: now, Until: now.Add(k.Grace), Message: k.Message, Abrupt: k.Abrupt, Restart: k.Restart}
		if err := w.step("kill-record", func() error { return a.rec.save(w.p.deps.Layout, string(w.uid)) }); err != nil {
			a.rec.Kill = nil
			return err
		}
		if k.Message != "" {
			w.event(pod, &c, corev1.EventTypeNormal, "Killing", k.Message)
		}
		w.quietProbes(a, podEnds)
	} else if until := now.Add(k.Grace); asked && until.Before(a.rec.Kill.Until) {
		a.rec.Kill.Until, a.rec.Kill.Abrupt = until, a.rec.Kill.Abrupt || k.Abrupt // the grace period was shortened
		if err := a.rec.save(w.p.deps.Layout, string(w.uid)); err != nil {
			return err
		}
		w.cancelOps(func(key string) bool { return key == killKey(a) })
	}
	kill, rec, before := *a.rec.Kill, a.rec, w.ends(k.After)
	o := w.begin(killKey(a), 100*time.Millisecond, func(ctx context.Context) (any, error) {
		alive, err := w.stopProcess(ctx, pod, c, rec, kill, before, a.ended)
		if err == nil && alive {
			err = w.killAll(ctx, pod, c, rec, a.ended, podEnds)
		}
		return nil, err
	})
	if o.done {
		w.forget(killKey(a)) // it has done all it could; if the process lives, again
		w.wakeAfter(5 * time.Second)
	}
	return nil
}

// ends are the channels that tell of the ends of containers that run.
func (w *worker) ends(containers []string) []<-chan struct{} {
	var out []<-chan struct{}
	for _, name := range containers {
		for _, a := range w.attempts[name] {
			if a.exit == nil {
				out = append(out, a.ended)
			}
		}
	}
	return out
}

func killKey(a *attempt) string { return fmt.Sprintf("kill/%s/%d", a.rec.Container, a.rec.Number) }

// quietProbes ends liveness and startup probes; readiness goes on while the pod ends, so
// that endpoints see it fail.
func (w *worker) quietProbes(a *attempt, podEnds bool) {
	if podEnds {
		w.p.deps.Probes.StopLivenessAndStartup(string(w.uid))
		return
	}
	w.p.deps.Probes.Stop(string(w.uid), a.rec.Container)
}

// stopProcess runs the preStop hook, waits for the container's turn and sends the stop signal. It
// says whether KILL is due: the grace period is over and the process still alive.
func (w *worker) stopProcess(ctx context.Context, pod *corev1.Pod, c podplan.Container, rec attemptRecord, kill killRecord, before []<-chan struct{}, ended <-chan struct{}) (alive bool, err error) {
	var held time.Time
	if !kill.Abrupt {
		if held, err = w.preStopOnce(ctx, pod, c, rec, kill.Until, ended); err != nil {
			return false, err
		}
	}
	if len(before) > 0 {
		waitTurn(ctx, before, ended, kill.Until)
		held = time.Now()
	}
	if ctx.Err() != nil {
		return false, ctx.Err()
	}
	killAt := podplan.KillTimes(kill.Begun, kill.Until.Sub(kill.Begun), held)
	if err := w.askToStop(ctx, rec); err != nil {
		w.log.Warn("Cannot ask a container to stop", "container", c.Name, "err", err)
	}
	if died(ctx, ended, time.Until(killAt)) {
		return false, nil
	}
	return true, ctx.Err() // cut short: the next round has the new time
}

// waitTurn waits for the ends of others, at most for that of the process itself or the grace period.
func waitTurn(ctx context.Context, before []<-chan struct{}, ended <-chan struct{}, until time.Time) {
	ctx, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	for _, other := range before {
		select {
		case <-other:
		case <-ended:
			return
		case <-ctx.Done():
			return
		}
	}
}

// askToStop sends the stop signal, once in the attempt's life: to many programs a second one
// means to drop everything. Neither a shorter grace period nor a new agent repeats it.
func (w *worker) askToStop(ctx context.Context, rec attemptRecord) error {
	mark := filepath.Join(w.p.deps.Layout.AttemptRun(string(w.uid), rec.Container, rec.Number), stopFile)
	if _, err := os.Lstat(mark); err == nil {
		return nil
	}
	return w.step("term", func() error {
		if err := w.signal(ctx, rec, signalOf(rec.StopSignal), false); err != nil {
			return err
		}
		return writeFile(mark, nil, 0o600)
	})
}

// killAll kills all processes of an attempt and gives them some time to be gone. A process
// that is killed exits in its own time: where there are thousands (a fork bomb), those of a
// group with a CPU quota take a minute for it. So the quota is lifted; the pod's is put back
// for the containers that stay.
func (w *worker) killAll(ctx context.Context, pod *corev1.Pod, c podplan.Container, rec attemptRecord, ended <-chan struct{}, podEnds bool) error {
	slice := podplan.PodSlice(pod, w.p.deps.Node.PodPidsLimit)
	if podplan.ContainerResources(pod, c).CPUQuota != nil {
		w.setQuota(ctx, rec.Unit, noQuota)
	}
	if quota := slice.Resources.CPUQuota; quota != nil {
		w.setQuota(ctx, slice.Name, noQuota)
		if !podEnds {
			defer w.setQuota(context.WithoutCancel(ctx), slice.Name, *quota)
		}
	}
	if err := w.step("kill", func() error { return w.signal(ctx, rec, unix.SIGKILL, true) }); err != nil {
		return err
	}
	w.unitChanged()
	died(ctx, ended, 10*time.Second)
	return nil
}

// noQuota lifts a CPU quota.
const noQuota = time.Duration(-1)

// setQuota changes the CPU quota of a unit or slice that may be gone. It never stands in the
// way of a kill.
func (w *worker) setQuota(ctx context.Context, name string, quota time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if err := w.p.deps.Runtime.SetResources(ctx, name, systemd.Resources{CPUQuota: &quota}); err != nil {
		w.log.Info("CPU quota is not changed for a kill", "unit", name, "err", err)
	}
}

func (w *worker) signal(ctx context.Context, rec attemptRecord, signal syscall.Signal, all bool) error {
	if err := w.p.deps.Runtime.Signal(ctx, rec.Unit, signal, all); err != nil {
		return fmt.Errorf("signal container %s: %w", rec.Container, err)
	}
	return nil
}

// died waits for the end of a process for at most d.
func died(ctx context.Context, ended <-chan struct{}, d time.Duration) bool {
	timer := time.NewTimer(max(d, 0))
	defer timer.Stop()
	select {
	case <-ended:
		return true
	case <-ctx.Done():
	case <-timer.C:
	}
	return false
}
