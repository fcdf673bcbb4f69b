package provider

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
)

// fakeSELinux is a host whose policy does not know some types. It outlives agents, as files do.
type fakeSELinux struct {
	unknown []string

	mu      sync.Mutex
	levels  map[string]string
	given   []string // "path label", -R if recursive
	failure error
}

func (*fakeSELinux) Defaults() (process, file string) {
	return "system_u:system_r:container_t:s0", "system_u:object_r:container_file_t:s0"
}

func (f *fakeSELinux) Check(label string) error {
	if kind := strings.Split(label, ":")[2]; slices.Contains(f.unknown, kind) {
		return fmt.Errorf("no %s", kind)
	}
	return nil
}

func (f *fakeSELinux) Level(uid string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.levels == nil {
		f.levels = map[string]string{}
	}
	if f.levels[uid] == "" {
		f.levels[uid] = fmt.Sprintf("s0:c%d,c99", len(f.levels)+1)
	}
	return f.levels[uid], nil
}

func (f *fakeSELinux) Release(uid string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.levels, uid)
	return nil
}

func (f *fakeSELinux) Relabel(path, label string, recursive bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if recursive {
		path = "-R " + path
	}
	f.given = append(f.given, path+" "+label)
	return f.failure
}

func TestSELinuxOfContainers(t *testing.T) {
	const plain = "system_u:system_r:container_t:s0:c1,c99"
	type options = corev1.SELinuxOptions
	for _, tc := range []struct {
		name       string
		host       *fakeSELinux
		options    *options
		privileged bool
		want       string // the label, or the waiting message after "!"
	}{
		{name: "default", host: &fakeSELinux{}, want: plain},
		{name: "no SELinux", options: &options{Type: "t"}},
		{name: "explicit", host: &fakeSELinux{}, options: &options{Type: "t", Level: "s0:c5"}, want: "system_u:system_r:t:s0:c5"},
		{name: "privileged", host: &fakeSELinux{}, privileged: true, want: "system_u:system_r:spc_t:s0:c1,c99"},
		{name: "privileged, and the policy does not know that", host: &fakeSELinux{unknown: []string{"spc_t"}}, privileged: true},
		{
			name: "unknown type", host: &fakeSELinux{unknown: []string{"t"}}, options: &options{Type: "t", Level: "s0:c5"},
			want: "!spec.securityContext.seLinuxOptions.type: no t",
		},
		{name: "unknown default", host: &fakeSELinux{unknown: []string{"container_file_t"}}, want: "!no container_file_t"},
		{name: "no level", host: &fakeSELinux{}, options: &options{Level: "high"}, want: "!spec.securityContext.seLinuxOptions.level: "},
		{name: "cannot be labelled", host: &fakeSELinux{failure: errors.New("read-only")}, want: "!read-only"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.facts = func(deps *Deps) {
					if tc.host != nil {
						deps.SELinux = tc.host
					}
				}
				w.boot("")
				w.create("a", func(pod *corev1.Pod) {
					pod.Spec.SecurityContext = &corev1.PodSecurityContext{SELinuxOptions: tc.options}
					pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: &tc.privileged}
				})
				if message, refused := strings.CutPrefix(tc.want, "!"); refused {
					w.until("refused", func() bool {
						pod, _ := w.get("a")
						if len(pod.Status.ContainerStatuses) == 0 {
							return false
						}
						waiting := pod.Status.ContainerStatuses[0].State.Waiting
						return waiting != nil && waiting.Reason == "CreateContainerError" && strings.Contains(waiting.Message, message)
					})
					if !slices.ContainsFunc(w.events, func(e string) bool { return strings.HasPrefix(e, "Warning Failed Error: "+message) }) {
						t.Errorf("events %q", w.events)
					}
					return
				}
				w.until("Running", w.podIs("a", corev1.PodRunning))
				if got := w.launched("app").SELinux; got != tc.want {
					t.Errorf("label %q, want %q", got, tc.want)
				}
				if labelled := w.launched("app").MountLabel != ""; labelled != (tc.host != nil) {
					t.Errorf("mounts are labelled: %t", labelled)
				}
			})
		})
	}
}

// TestLevelIsThePods: all its containers have it, those of a later agent too, and it is free once the
// pod has gone.
func TestLevelIsThePods(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		host := &fakeSELinux{}
		w.facts = func(deps *Deps) { deps.SELinux = host }
		a := w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		first := w.launched("app").SELinux
		if hosts := "hosts system_u:object_r:container_file_t:s0:c1,c99"; !slices.ContainsFunc(host.given, func(g string) bool { return strings.HasSuffix(g, hosts) }) {
			t.Errorf("labelled %q, want the pod's hosts file", host.given)
		}
		a.stop()
		a = w.boot("")
		w.exit(a, "app", 1)
		w.until("started again", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return len(w.starts) > 1 })
		w.until("Running again", w.podIs("a", corev1.PodRunning))
		if got := w.launched("app").SELinux; got != first || first == "" {
			t.Errorf("label %q, before it was %q", got, first)
		}
		w.delete("a", 0)
		w.until("gone", func() bool { return len(w.left()) == 0 })
		w.until("its level is free", func() bool { host.mu.Lock(); defer host.mu.Unlock(); return len(host.levels) == 0 })
	})
}
