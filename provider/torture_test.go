package provider

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/endpoints"
	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// TestRandomLives does random things to some pods while agents are killed at random steps
// and the API server comes and goes. In the end the machine is what the API says, no
// process was started beside another of its container, and none without a reason.
// VK_METAL_SEEDS tries more than a few.
func TestRandomLives(t *testing.T) {
	seeds := 8
	if n, err := strconv.Atoi(os.Getenv("VK_METAL_SEEDS")); err == nil {
		seeds = n
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				r := &randomLives{world: w, random: rand.New(rand.NewPCG(uint64(seed), 7)), crashes: map[types.UID]int{}}
				r.breakAPI()
				r.reborn()
				for range 80 {
					r.act()
				}
				r.settle()
				t.Logf("%d starts, %d actions", len(w.starts), len(r.trail))
			})
		})
	}
}

// randomLives is one run.
type randomLives struct {
	*world
	random  *rand.Rand
	agent   *agent
	away    atomic.Bool // the API server
	crashes map[types.UID]int
	serial  int
	trail   []string
}

const livesPods = 6

func (r *randomLives) note(format string, args ...any) {
	r.trail = append(r.trail, fmt.Sprintf(format, args...))
}

// breakAPI lets every request fail while the API server is away; the test's own too.
func (r *randomLives) breakAPI() {
	r.client.PrependReactor("*", "*", func(clienttesting.Action) (bool, kruntime.Object, error) {
		if r.away.Load() {
			return true, nil, errors.New("the API server is away")
		}
		return false, nil, nil
	})
}

// reborn replaces the agent by one that dies some steps on.
func (r *randomLives) reborn() {
	if r.agent != nil {
		r.agent.stop()
	}
	r.agent = r.boot("")
	r.agent.mu.Lock()
	r.agent.dieAfter = 1 + r.random.IntN(120)
	r.agent.mu.Unlock()
}

// act does one thing and lets some time go by.
func (r *randomLives) act() {
	name := fmt.Sprintf("p%d", r.random.IntN(livesPods))
	what, grace, pause := r.random.IntN(100), int64(r.random.IntN(8)), time.Duration(r.random.IntN(6000))*time.Millisecond
	synctest.Wait()
	r.agent.mu.Lock()
	dead := r.agent.dead
	r.agent.mu.Unlock()
	switch {
	case dead:
		r.note("agent reborn")
		r.reborn()
	case what < 30:
		r.makeOne(name)
	case what < 50:
		r.deleteOne(name, grace)
	case what < 70:
		r.crashOne(name)
	case what < 78:
		r.note("API server away: %t", !r.away.Load())
		r.away.Store(!r.away.Load())
	case what < 85:
		r.manifestOne(grace)
	case what < 92:
		r.mu.Lock()
		for uid := range r.crashes {
			r.offers[uid] = []endpoints.Endpoint{{Slice: "s", Ready: grace%2 == 0, Terminating: grace%2 == 1}}
		}
		r.mu.Unlock()
	default:
		r.note("agent stopped")
		r.reborn()
	}
	time.Sleep(pause)
}

func (r *randomLives) makeOne(name string) {
	r.serial++
	kind := r.random.IntN(4)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(fmt.Sprintf("uid-%s-%d", name, r.serial)), Generation: 1},
		Spec: corev1.PodSpec{
			NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways,
			Containers: []corev1.Container{{Name: "app", Image: "img"}},
		},
		Status: corev1.PodStatus{Phase: corev1.PodPending},
	}
	always := corev1.ContainerRestartPolicyAlways
	switch kind {
	case 1:
		pod.Spec.InitContainers = []corev1.Container{{Name: "side", Image: "img", RestartPolicy: &always}}
	case 2:
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	case 3:
		pod.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Sleep: &corev1.SleepAction{Seconds: 1}}}
	}
	if _, err := r.client.CoreV1().Pods("ns").Create(r.t.Context(), pod, metav1.CreateOptions{}); err == nil {
		r.note("made %s", pod.UID)
		r.mu.Lock()
		r.crashes[pod.UID] = 0
		r.mu.Unlock()
	}
}

func (r *randomLives) deleteOne(name string, grace int64) {
	if r.client.CoreV1().Pods("ns").Delete(r.t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: &grace}) == nil {
		r.note("deleted %s, grace %d", name, grace)
	}
}

// crashOne ends the running processes of a pod by this name.
func (r *randomLives) crashOne(name string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, u := range r.units {
		if u.running && u.Identity.PodName == name {
			r.note("crashed %s", u.Name)
			r.end(u, 1, 0)
			r.crashes[types.UID(u.Identity.PodUID)]++
			r.agent.notify(u.Name)
		}
	}
}

// manifestOne puts no static pod, or another version of it, into the directory.
func (r *randomLives) manifestOne(which int64) {
	r.note("manifest %d", which)
	if which < 2 {
		r.manifest()
		return
	}
	r.manifest(staticPod(fmt.Sprint(which)))
}

// settle ends the storm and compares.
func (r *randomLives) settle() {
	r.away.Store(false)
	r.agent.stop()
	r.agent = r.boot("")
	defer func() {
		if r.t.Failed() {
			r.t.Logf("what was done:\n%s", strings.Join(r.trail, "\n"))
		}
	}()
	done := ""
	for range 1200 { // minutes of back-off
		time.Sleep(time.Second)
		synctest.Wait()
		if done = r.difference(); done == "" {
			break
		}
	}
	if done != "" {
		r.t.Errorf("the machine is not what the API says: %s", done)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.doubled) > 0 {
		r.t.Errorf("started beside a living attempt: %v", r.doubled)
	}
}

// difference says what is not as it should be.
func (r *randomLives) difference() string {
	list, err := r.client.CoreV1().Pods("ns").List(r.t.Context(), metav1.ListOptions{})
	if err != nil {
		return err.Error()
	}
	r.mu.Lock()
	wanted := map[string]int{} // containers by UID
	for _, pod := range r.manifests {
		wanted[string(pod.UID)] = len(pod.Spec.Containers)
	}
	r.mu.Unlock()
	for _, pod := range list.Items {
		_, mirror := pod.Annotations[staticpods.AnnotationMirror]
		final := isFinal(pod.Status.Phase)
		switch {
		case pod.DeletionTimestamp != nil:
			return pod.Name + " is being deleted"
		case !mirror && !final:
			wanted[string(pod.UID)] = len(pod.Spec.Containers) + len(pod.Spec.InitContainers)
		case !mirror:
			wanted[string(pod.UID)] = 0
		}
		if !final && pod.Status.Phase != corev1.PodRunning {
			return fmt.Sprintf("%s is %s", pod.Name, pod.Status.Phase)
		}
		for _, cs := range append(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses...) {
			if !final && (cs.State.Running == nil || !cs.Ready) {
				return fmt.Sprintf("%s: container %s is %+v", pod.Name, cs.Name, cs.State)
			}
		}
		r.mu.Lock()
		crashes := r.crashes[pod.UID]
		r.mu.Unlock()
		for _, cs := range pod.Status.ContainerStatuses {
			if !mirror && int(cs.RestartCount) > crashes {
				return fmt.Sprintf("%s was restarted %d times and crashed %d times", pod.Name, cs.RestartCount, crashes)
			}
		}
	}
	return r.compareMachine(wanted)
}

// compareMachine finds what runs without being wanted, or the other way round.
func (r *randomLives) compareMachine(wanted map[string]int) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	running := map[string]int{}
	for _, u := range r.units {
		if u.running {
			running[u.Identity.PodUID]++
		}
	}
	for uid, n := range wanted {
		if running[uid] != n {
			return fmt.Sprintf("%d processes of %s run, want %d", running[uid], uid, n)
		}
		if n == 0 {
			delete(running, uid)
		}
	}
	for uid := range running {
		if _, ok := wanted[uid]; !ok {
			return "an orphan of " + uid + " runs"
		}
	}
	for uid := range r.networks {
		if _, ok := wanted[uid]; !ok {
			return "the network of " + uid + " is left"
		}
	}
	for uid := range r.streams {
		if _, ok := wanted[uid]; !ok {
			return "log streams of " + uid + " are left"
		}
	}
	for uid := range r.volumes {
		if _, ok := wanted[uid]; !ok {
			return "volumes of " + uid + " are left"
		}
	}
	return ""
}
