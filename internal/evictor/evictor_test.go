package evictor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// server has so much memory and disk left, and pods that take of them.
type server struct {
	mu           sync.Mutex
	memory, disk int64 // left without the pods
	pods         []string
	takes        int64 // each pod, of both
	linger       time.Duration
	unused       int64 // images
	said         []string
	changed      int
	begun        time.Time
}

func (s *server) note(format string, args ...any) {
	s.said = append(s.said, fmt.Sprintf("%ds ", int(time.Since(s.begun).Seconds()))+fmt.Sprintf(format, args...))
}

func (s *server) observe(context.Context) pressure.Observations {
	s.mu.Lock()
	defer s.mu.Unlock()
	taken := s.takes * int64(len(s.pods))
	return pressure.Observations{
		pressure.MemoryAvailable: {Available: s.memory - taken, Capacity: 1000},
		pressure.NodeFSAvailable: {Available: s.disk - s.unused - taken, Capacity: 1000},
	}
}

func (s *server) Candidates(context.Context, pressure.Signal) ([]pressure.Candidate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []pressure.Candidate
	for _, name := range s.pods {
		list = append(list, pressure.Candidate{Pod: &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name)}}, Usage: &pressure.Usage{Memory: s.takes, Disk: s.takes}})
	}
	return list, nil
}

func (s *server) Evict(uid types.UID, _ string, grace time.Duration) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid == "critical" {
		return nil
	}
	s.note("evict %s %s", uid, grace)
	freed := make(chan struct{})
	time.AfterFunc(s.linger, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pods = slices.DeleteFunc(s.pods, func(p string) bool { return p == string(uid) })
		close(freed)
	})
	return freed
}

func (s *server) reclaim(signal pressure.Signal) func(context.Context) error {
	if signal == pressure.MemoryAvailable {
		return nil
	}
	return func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.note("remove images")
		s.unused = 0
		return nil
	}
}

// run keeps the evictor going for a while and returns what happened.
func (s *server) run(t *testing.T, length time.Duration, wake chan struct{}) (*Evictor, []string) {
	t.Helper()
	s.begun = time.Now()
	e := New(Options{
		Settings: pressure.Settings{
			Thresholds:       pressure.Thresholds(map[pressure.Signal]pressure.Amount{pressure.MemoryAvailable: {Number: 100}, pressure.NodeFSAvailable: {Percent: 10}}, nil, nil, nil),
			TransitionPeriod: 5 * time.Minute,
		},
		Observe: s.observe, Reclaim: s.reclaim, Pods: s, Wake: wake, Log: slog.New(slog.DiscardHandler),
		Changed: func() { s.changed++ },
		Event:   func(_, reason, message string) { s.mu.Lock(); defer s.mu.Unlock(); s.note("%s %s", reason, message) },
	})
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	if err := e.Run(ctx); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	return e, slices.Clone(s.said)
}

func TestOnePodAfterTheOtherGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{memory: 350, disk: 1000, takes: 100, pods: []string{"critical", "b", "c", "d"}, linger: 4 * time.Second}
		e, got := s.run(t, time.Minute, nil)
		want := []string{
			"0s EvictionThresholdMet Attempting to reclaim memory", "0s evict b 1s",
			"4s EvictionThresholdMet Attempting to reclaim memory", "4s evict c 1s",
		}
		if !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if c := e.Conditions(); !slices.Equal(c, []corev1.NodeConditionType{corev1.NodeMemoryPressure}) || s.changed != 1 {
			t.Errorf("conditions %v after %d changes", c, s.changed)
		}
	})
}

func TestImagesGoBeforePods(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{memory: 1000, disk: 300, takes: 50, pods: []string{"a"}, unused: 200}
		e, got := s.run(t, 6*time.Minute, nil)
		if want := []string{"0s EvictionThresholdMet Attempting to reclaim ephemeral-storage", "0s remove images"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		if c := e.Conditions(); len(c) > 0 || s.changed != 2 {
			t.Errorf("conditions %v after %d changes", c, s.changed)
		}
	})
}

func TestAPodThatStaysIsNotWaitedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{memory: 150, disk: 1000, takes: 100, pods: []string{"a"}, linger: time.Hour}
		_, got := s.run(t, 40*time.Second, nil)
		if len(got) < 4 || got[1] != "0s evict a 1s" || got[3] != "30s evict a 1s" {
			t.Errorf("%q", got)
		}
	})
}

func TestTheKernelsSignalIsHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{memory: 1000, disk: 1000, takes: 100, pods: []string{"a"}}
		wake := make(chan struct{}, 1)
		time.AfterFunc(3*time.Second, func() {
			s.mu.Lock()
			s.memory = 150
			s.mu.Unlock()
			wake <- struct{}{}
		})
		_, got := s.run(t, 9*time.Second, wake)
		if want := []string{"3s EvictionThresholdMet Attempting to reclaim memory", "3s evict a 1s"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
	})
}

// TestStalls sets a real trigger: the kernel takes it, and the watch ends with its context.
func TestStalls(t *testing.T) {
	if _, err := os.Stat(PressureFile); err != nil {
		t.Skip("a kernel without PSI")
	}
	if r, w, err := os.Pipe(); err != nil || r.Close() != nil || w.Close() != nil { // what the runtime opens once
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	before := descriptors(t)
	if _, err := Stalls(ctx, PressureFile); err != nil {
		t.Fatal(err)
	}
	cancel()
	for deadline := time.Now().Add(time.Minute); descriptors(t) > before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the watch goes on after its end")
		}
	}
	if _, err := Stalls(t.Context(), "/proc/self/status"); err == nil {
		t.Error("a file without triggers is watched")
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}
