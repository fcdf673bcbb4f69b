package provider

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
)

func TestDirectoriesOfPodsAreRootsAlone(t *testing.T) {
	w := newWorld(t)
	dirs := []string{filepath.Dir(w.layout.PodLib("x")), filepath.Dir(w.layout.PodRun("x"))}
	if err := os.MkdirAll(dirs[0], 0o755); err != nil { // as an older version left it
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.create("a", nil)
		w.until("Running", w.podIs("a", corev1.PodRunning))
	})
	for _, dir := range dirs {
		if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("%s: %v, %v", dir, info.Mode(), err)
		}
	}
}
