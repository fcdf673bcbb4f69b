package provider

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/testapi"
)

// links maps the names in /var/log/containers to where they lead.
func (w *world) links() map[string]string {
	w.t.Helper()
	dir := filepath.Dir(w.layout.Log) + "/containers"
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	links := map[string]string{}
	for _, e := range entries {
		if links[e.Name()], err = os.Readlink(filepath.Join(dir, e.Name())); err != nil {
			w.t.Fatal(err)
		}
	}
	return links
}

// TestLogLinks follows a container's link over restarts: it is there for the current and
// the previous attempt, of the form that log collectors look for, and goes with the pod.
func TestLogLinks(t *testing.T) {
	w := newWorld(t)
	// The pattern of Fluent Bit's and Fluentd's Kubernetes filters.
	form := regexp.MustCompile(`^(?P<pod>[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*)_(?P<ns>[^_]+)_(?P<c>.+)-(?P<id>[a-z0-9]{64})\.log$`)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		ends := 3
		w.behave = func(u *fakeUnit) {
			if ends > 0 {
				ends--
				w.end(u, 1, 0)
			}
		}
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
		time.Sleep(5 * time.Minute)
		links := w.links()
		var targets []string
		for name, target := range links {
			if m := form.FindStringSubmatch(name); m == nil || m[1] != "a" || m[2] != "ns" || m[3] != "app" {
				t.Errorf("link %s is not of the form", name)
			}
			if _, err := os.Stat(target); err != nil {
				t.Error(err)
			}
			targets = append(targets, filepath.Base(target))
		}
		slices.Sort(targets)
		if want := []string{"2.log", "3.log"}; !slices.Equal(targets, want) {
			t.Errorf("links lead to %v, want %v", targets, want)
		}
		w.delete("a", 0)
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

// TestLogsOfVanishedPods: a pod was deleted while the node was away and rebooted. Its logs
// go, those of others stay, and all stay while the API server is another one.
func TestLogsOfVanishedPods(t *testing.T) {
	for name, foreign := range map[string]bool{"our API server": false, "another API server": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			if foreign {
				w.client = testapi.NewClientset(&corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes", UID: "cluster-2"}})
			}
			logs := map[string]bool{"ns_old_uid-old/app/0.log": foreign, "ns_b_uid-b/app/0.log": true, "readme": true, "a_b_c_uid-c": true, "ns_x_..": true}
			for name := range logs {
				write(t, filepath.Join(w.layout.Log, name, "0.log"))
			}
			write(t, filepath.Join(w.layout.Lib, "pods", "uid-b", "kept"))
			links := filepath.Dir(w.layout.Log) + "/containers"
			for link, target := range map[string]string{"old": w.layout.Log + "/ns_old_uid-old/app/0.log", "foreign": "/elsewhere/0.log"} {
				write(t, filepath.Join(links, "x"))
				if err := os.Symlink(target, filepath.Join(links, link)); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.MkdirAll(w.layout.Lib, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := writeJSON(filepath.Join(w.layout.Lib, "cluster.json"), cluster{ServiceUID: "cluster-1"}); err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				a := w.boot("")
				<-a.provider.Ready()
				time.Sleep(time.Second)
				for name, want := range logs {
					if _, err := os.Stat(filepath.Join(w.layout.Log, name)); (err == nil) != want && name != "ns_b_uid-b/app/0.log" {
						t.Errorf("%s: %v, want it there: %t", name, err, want)
					}
				}
				if _, err := os.Lstat(filepath.Join(links, "old")); (err == nil) != foreign {
					t.Errorf("dangling link: %v", err)
				}
				if _, err := os.Lstat(filepath.Join(links, "foreign")); err != nil {
					t.Errorf("another's link: %v", err)
				}
			})
		})
	}
}

func write(t *testing.T, path string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
}
