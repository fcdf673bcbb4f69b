package provider

import (
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// eventLimiter keeps a worker that looks often from repeating one event: the same text
// comes again only after a delay that doubles. Recorders count and limit further.
type eventLimiter map[string]*repeat

type repeat struct {
	next  time.Time
	delay time.Duration
}

const (
	repeatFirst = 10 * time.Second
	repeatMax   = 5 * time.Minute
)

var limiterLock sync.Mutex // hooks and pulls report from beside the loop

// allow says whether the event may be sent now.
func (l eventLimiter) allow(key string) bool {
	limiterLock.Lock()
	defer limiterLock.Unlock()
	now := time.Now()
	r := l[key]
	if r == nil {
		l[key] = &repeat{next: now.Add(repeatFirst), delay: repeatFirst}
		return true
	}
	if now.Before(r.next) {
		return false
	}
	r.delay = min(2*r.delay, repeatMax)
	r.next = now.Add(r.delay)
	return true
}

// delay is how long a container that cannot be made waits for its next try.
func (l eventLimiter) delay(container string) time.Duration {
	limiterLock.Lock()
	defer limiterLock.Unlock()
	r := l["retry/"+container]
	if r == nil {
		r = &repeat{delay: time.Second}
		l["retry/"+container] = r
		return r.delay
	}
	r.delay = min(2*r.delay, repeatMax)
	return r.delay
}

// event tells of a pod or, with c, of one of its containers.
func (w *worker) event(pod *corev1.Pod, c *podplan.Container, kind, reason, message string) {
	field := ""
	if c != nil {
		field = c.Field
	}
	once := kind == corev1.EventTypeNormal && reason != "BackOff"
	if !once && !w.events.allow(field+"/"+reason+"/"+message) {
		return
	}
	w.countFailure(pod, reason)
	w.p.deps.Recorder.Event(reference(pod, field), kind, reason, message)
}

// quietRecorder drops the events that virtual-kubelet makes of its own calls to us: a
// kubelet has none like them.
type quietRecorder struct{ record.EventRecorder }

func (quietRecorder) Event(_ runtimeObject, _, _, _ string)            {}
func (quietRecorder) Eventf(_ runtimeObject, _, _, _ string, _ ...any) {}
func (quietRecorder) AnnotatedEventf(_ runtimeObject, _ map[string]string, _, _, _ string, _ ...any) {
}

type runtimeObject = runtime.Object
