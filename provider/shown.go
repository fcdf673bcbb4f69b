package provider

import (
	"bytes"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// shown is what the API server may know of an attempt, copied after each look.
type shown struct {
	number  int
	unit    string
	running bool
	done    <-chan struct{}
	images  []string // of its volumes
}

// over says whether nothing will be added to the attempt's log.
func (s shown) over() bool {
	select {
	case <-s.done:
		return true
	default:
		return false
	}
}

// show publishes the attempts for readers outside the loop.
func (w *worker) show() {
	view := map[string][]shown{}
	for name, list := range w.attempts {
		for _, a := range list {
			if a.exit == nil && !a.rec.Launched {
				continue
			}
			if a.complete {
				a.completeOnce.Do(func() { close(a.completed) })
			}
			view[name] = append(view[name], shown{number: a.rec.Number, unit: a.rec.Unit, running: a.exit == nil, done: a.completed, images: a.rec.VolumeImages})
		}
	}
	w.mu.Lock()
	w.visible = view
	w.mu.Unlock()
}

func (w *worker) shown(container string) []shown {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.visible[container]
}

// objectChanged wakes a pod that refers to a changed object: what it lacked may be there,
// and its volumes are rendered anew.
func (p *Provider) objectChanged(uid string) {
	w := p.byUID(types.UID(uid))
	if w == nil {
		return
	}
	w.mu.Lock()
	w.changed = true
	w.mu.Unlock()
	w.retryNow(func(key string) bool { return key == opVolumes || strings.HasPrefix(key, envOps) })
}

// probeEvent passes a probe's event on.
func (p *Provider) probeEvent(target probes.Target, kind, reason, message string) {
	w := p.byUID(types.UID(target.PodUID))
	if w == nil {
		return
	}
	pod, _ := w.current()
	if c, ok := podplan.Find(pod, target.Container.Name); ok {
		w.p.deps.Recorder.Event(reference(pod, c.Field), kind, reason, message)
	}
}

func reference(pod *corev1.Pod, field string) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		Kind: "Pod", APIVersion: "v1", Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
		ResourceVersion: pod.ResourceVersion, FieldPath: field,
	}
}

// limitedBuffer keeps the first 10 KiB of what several streams write.
type limitedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxOutput = 10 << 10

// Write never fails: what is too much is dropped.
func (l *limitedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := maxOutput - l.buf.Len(); room > 0 {
		l.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Bytes is what has been kept.
func (l *limitedBuffer) Bytes() []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Clone(l.buf.Bytes())
}
