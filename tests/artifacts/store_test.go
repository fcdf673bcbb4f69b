package artifacts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vk-metal/vk-metal/tests/progress"
)

func newStore(t *testing.T) *Store {
	t.Helper()
	store, err := NewStore(t.TempDir(), progress.New(nil))
	if err != nil {
		t.Fatal(err)
	}
	return store
}

// counting is a recipe that counts its builds.
func counting(builds *atomic.Int64, inputs ...string) Recipe {
	return Recipe{Name: "thing", Inputs: inputs, Build: func(_ context.Context, dir string, _ *progress.Step) error {
		builds.Add(1)
		return os.WriteFile(filepath.Join(dir, "file"), []byte("content"), 0o644)
	}}
}

func TestGetBuildsOncePerInputs(t *testing.T) {
	store := newStore(t)
	var builds atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := store.Get(t.Context(), counting(&builds, "go1.26", "v1"))
			if err != nil {
				t.Error(err)
				return
			}
			if content, err := os.ReadFile(filepath.Join(dir, "file")); err != nil || string(content) != "content" {
				t.Errorf("read %q, %v", content, err)
			}
		})
	}
	wg.Wait()
	if builds.Load() != 1 {
		t.Errorf("%d builds, want 1", builds.Load())
	}
	if _, err := store.Get(t.Context(), counting(&builds, "go1.26", "v2")); err != nil || builds.Load() != 2 {
		t.Errorf("another input: %d builds, %v; want 2", builds.Load(), err)
	}
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	store := newStore(t)
	failure := errors.New("compiler is ill")
	bad := Recipe{Name: "thing", Build: func(_ context.Context, dir string, _ *progress.Step) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), failure)
	}}
	if _, err := store.Get(t.Context(), bad); !errors.Is(err, failure) {
		t.Fatalf("got %v", err)
	}
	left, err := filepath.Glob(filepath.Join(store.dir, "thing", "*", "*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestGetKeepsTheLastResults(t *testing.T) {
	store := newStore(t)
	var builds atomic.Int64
	for _, input := range []string{"a", "b", "c", "d", "e", "f"} {
		if _, err := store.Get(t.Context(), counting(&builds, input)); err != nil {
			t.Fatal(err)
		}
	}
	left, err := filepath.Glob(filepath.Join(store.dir, "thing", "*", "file"))
	if err != nil || len(left) != Keep {
		t.Errorf("%d results left, want %d (%v)", len(left), Keep, err)
	}
}

func TestCancelledWaitEnds(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lock")
	unlock, err := lock(t.Context(), file)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lock(ctx, file); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want cancelled", err)
	}
}

func TestKeyTellsInputsApart(t *testing.T) {
	if (Recipe{Name: "a", Inputs: []string{"bc"}}).key() == (Recipe{Name: "a", Inputs: []string{"b", "c"}}).key() {
		t.Error("joined inputs have the same key")
	}
}

func TestHashTreeSeesContentAndNames(t *testing.T) {
	hash := func(files map[string]string) string {
		dir := t.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		sum, err := HashTree(dir, []string{".", "missing"}, func(path string) bool { return filepath.Ext(path) != ".md" })
		if err != nil {
			t.Fatal(err)
		}
		return sum
	}
	base := hash(map[string]string{"a.go": "1"})
	cases := map[string]struct {
		files map[string]string
		same  bool
	}{
		"same":         {map[string]string{"a.go": "1"}, true},
		"left out":     {map[string]string{"a.go": "1", "b.md": "2"}, true},
		"content":      {map[string]string{"a.go": "2"}, false},
		"name":         {map[string]string{"b.go": "1"}, false},
		"another file": {map[string]string{"a.go": "1", "b.go": ""}, false},
	}
	for name, c := range cases {
		if got := hash(c.files) == base; got != c.same {
			t.Errorf("%s: same hash = %t, want %t", name, got, c.same)
		}
	}
}

func TestCountPackagesKeepsMessages(t *testing.T) {
	var out bytes.Buffer
	step := progress.New(&out).Step("x")
	defer func() { _ = step.Done(nil) }()
	got := countPackagesIn("k8s.io/api/core/v1\ngo: downloading k8s.io/api v0.35.4\n./main.go:3:1: syntax error\n", step)
	if want := "./main.go:3:1: syntax error\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func countPackagesIn(text string, step *progress.Step) string {
	return countPackages(bufio.NewScanner(strings.NewReader(text)), step, 10)
}
