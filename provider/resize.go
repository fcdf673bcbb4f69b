package provider

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

const opResize = "resize"

// resizeRetry is how often a change that the kernel refuses is tried again.
const resizeRetry = 5 * time.Second

// Usage reads a cgroup's figures; *systemd.Manager implements it.
type Usage interface {
	Stats(ctx context.Context, name string) (systemd.Stats, error)
}

// resize changes the limits of running attempts and of the slice to what was granted.
// pod is as granted.
func (w *worker) resize(pod *corev1.Pod, d podplan.Decision) {
	w.mu.Lock()
	prepared := w.ops[opSlice] != nil && w.ops[opSlice].done
	w.mu.Unlock()
	if !prepared || d.Ending {
		return
	}
	wanted := podplan.PodSlice(pod, w.p.deps.Node.PodPidsLimit)
	if w.slice.Name == "" {
		w.slice = wanted // as prepare has made it
	}
	if len(d.Resize) == 0 && reflect.DeepEqual(w.slice, wanted) {
		w.resizeError = ""
		return
	}
	before := w.slice
	units := map[string]podplan.Resize{}
	for _, r := range d.Resize {
		units[w.attempt(r.Container, r.Attempt).rec.Unit] = r
	}
	o := w.begin(opResize, resizeRetry, func(ctx context.Context) (any, error) {
		return resized{wanted, d.Resize}, w.step("resize", func() error { return w.applyResize(ctx, pod, before, wanted, units) })
	})
	switch {
	case o.done:
		w.forget(opResize)
		w.noteResized(pod, o.value.(resized))
	case o.err != nil && w.resizeError == "": // its figures change with each try: the first is told
		w.resizeError = o.err.Error()
		w.event(pod, nil, corev1.EventTypeWarning, "ResizeError", podplan.ResizeMessage("error", pod, w.resizeError))
	}
}

// resized is what a change has brought about.
type resized struct {
	slice    systemd.Slice
	attempts []podplan.Resize
}

func (w *worker) noteResized(pod *corev1.Pod, done resized) {
	w.slice, w.resizeError = done.slice, ""
	for _, r := range done.attempts {
		a := w.attempt(r.Container, r.Attempt)
		if a == nil {
			continue
		}
		a.rec.Resources = &r.Resources
		if err := a.rec.save(w.p.deps.Layout, string(w.uid)); err != nil {
			w.log.Error("Cannot record a resize", "container", r.Container, "err", err)
		}
	}
	w.event(pod, nil, corev1.EventTypeNormal, "ResizeCompleted", podplan.ResizeMessage("completed", pod, ""))
	w.wakeUp()
}

// applyResize widens the slice first and narrows it last, so that containers never have
// less than before or after.
func (w *worker) applyResize(ctx context.Context, pod *corev1.Pod, before, wanted systemd.Slice, units map[string]podplan.Resize) error {
	set := w.p.deps.Runtime.SetResources
	limits := map[string]systemd.Resources{}
	for unit, r := range units {
		if c, ok := podplan.Find(pod, r.Container); ok {
			limits[unit] = podplan.ContainerResources(pod, c)
		}
	}
	if err := w.checkUsage(ctx, before, wanted, limits, units); err != nil {
		return err
	}
	if err := set(ctx, wanted.Name, widest(before.Resources, wanted.Resources)); err != nil {
		return fmt.Errorf("resize slice: %w", err)
	}
	for unit, resources := range limits {
		if err := set(ctx, unit, resources); err != nil {
			return fmt.Errorf("resize container %s: %w", units[unit].Container, err)
		}
	}
	if err := set(ctx, wanted.Name, wanted.Resources); err != nil {
		return fmt.Errorf("resize slice: %w", err)
	}
	for unit, resources := range limits {
		if err := w.readBack(ctx, unit, resources); err != nil {
			return fmt.Errorf("resize container %s: %w", units[unit].Container, err)
		}
	}
	return nil
}

// checkUsage refuses limits below what is in use: the kernel would kill for them (v2) or
// refuse them after the rest was changed (v1).
func (w *worker) checkUsage(ctx context.Context, before, wanted systemd.Slice, limits map[string]systemd.Resources, units map[string]podplan.Resize) error {
	if w.p.deps.Usage == nil {
		return nil
	}
	all := map[string]systemd.Resources{}
	for unit, r := range limits {
		all[unit] = r
	}
	if narrower(before.Resources.MemoryMax, wanted.Resources.MemoryMax) {
		all[wanted.Name] = wanted.Resources
	}
	for name, r := range all {
		if r.MemoryMax == nil {
			continue
		}
		stats, err := w.p.deps.Usage.Stats(ctx, name)
		if errors.Is(err, systemd.ErrNoCgroup) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read memory usage: %w", err)
		}
		shrinks := stats.MemoryLimit == 0 || *r.MemoryMax < stats.MemoryLimit
		if shrinks && stats.MemoryUsage >= *r.MemoryMax {
			whose := "pod"
			if unit, ok := units[name]; ok {
				whose = fmt.Sprintf("container %q", unit.Container)
			}
			return fmt.Errorf("cannot decrease memory limits: attempting to set %s memory limit (%d) below current usage (%d)",
				whose, *r.MemoryMax, stats.MemoryUsage)
		}
	}
	return nil
}

func narrower(before, after *uint64) bool {
	return after != nil && (before == nil || *after < *before)
}

// readBackTime bounds how long systemd may take to write a limit: it does so after its
// answer.
const readBackTime = 2 * time.Second

// readBack waits until the kernel has the memory limit. On cgroup v1 one below what is in
// use is refused, and systemd does not tell.
func (w *worker) readBack(ctx context.Context, unit string, r systemd.Resources) error {
	if w.p.deps.Usage == nil || r.MemoryMax == nil {
		return nil
	}
	const page = 4096 // the kernel keeps whole pages
	deadline := time.Now().Add(readBackTime)
	for {
		stats, err := w.p.deps.Usage.Stats(ctx, unit)
		if errors.Is(err, systemd.ErrNoCgroup) || err == nil && stats.MemoryLimit/page == *r.MemoryMax/page {
			return nil
		}
		if err == nil {
			err = fmt.Errorf("memory limit is %d, not %d", stats.MemoryLimit, *r.MemoryMax)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			return err
		}
		died(ctx, nil, 10*time.Millisecond)
	}
}

// widest takes the larger of each limit; none is the largest.
func widest(a, b systemd.Resources) systemd.Resources {
	wide := b
	if narrower(a.MemoryMax, b.MemoryMax) {
		wide.MemoryMax = a.MemoryMax
	}
	if a.CPUShares != nil && b.CPUShares != nil {
		shares := max(*a.CPUShares, *b.CPUShares)
		wide.CPUShares = &shares
	}
	if b.CPUQuota != nil && (a.CPUQuota == nil || *a.CPUQuota > *b.CPUQuota) {
		wide.CPUQuota = a.CPUQuota
	}
	return wide
}
