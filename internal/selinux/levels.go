//go:build linux

package selinux

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// categories is how many a policy with MCS has: c0 to c1023.
const categories = 1024

// Levels are the levels of pods, each of which is one pair of categories. Whose they are is kept in
// files, so that an agent that is started again knows.
type Levels struct {
	dir  string
	pick func() (a, b int) // categories, in any order

	mu    sync.Mutex
	byPod map[string]string // nil until it has been read
}

// NewLevels keeps them in dir, which it makes.
func NewLevels(dir string) *Levels {
	return &Levels{dir: dir, pick: func() (int, int) {
		return rand.IntN(categories), rand.IntN(categories) //nolint:gosec // no secret: everybody may see labels
	}}
}

// Of is the pod's level, taken if it has none.
func (l *Levels) Of(podUID string) (string, error) {
	if podUID == "" || strings.HasPrefix(podUID, ".") || strings.ContainsAny(podUID, "/\x00") {
		return "", fmt.Errorf("take SELinux level: pod UID %q cannot name a file", podUID)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(); err != nil {
		return "", fmt.Errorf("take SELinux level: %w", err)
	}
	if level, has := l.byPod[podUID]; has {
		return level, nil
	}
	level, err := l.free()
	if err != nil {
		return "", fmt.Errorf("take SELinux level: %w", err)
	}
	path := filepath.Join(l.dir, podUID)
	draft := filepath.Join(l.dir, ".new")
	if err := os.WriteFile(draft, []byte(level), 0o600); err != nil {
		return "", fmt.Errorf("keep SELinux level: %w", err)
	}
	if err := os.Rename(draft, path); err != nil {
		return "", fmt.Errorf("keep SELinux level: %w", err)
	}
	l.byPod[podUID] = level
	return level, nil
}

// Release gives it back; idempotent.
func (l *Levels) Release(podUID string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.read(); err != nil {
		return fmt.Errorf("give back SELinux level: %w", err)
	}
	if _, has := l.byPod[podUID]; !has {
		return nil
	}
	if err := os.Remove(filepath.Join(l.dir, podUID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("give back SELinux level: %w", err)
	}
	delete(l.byPod, podUID)
	return nil
}

func (l *Levels) read() error {
	if l.byPod != nil {
		return nil
	}
	if err := os.MkdirAll(l.dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(l.dir)
	if err != nil {
		return err
	}
	byPod := map[string]string{}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue
		}
		level, err := os.ReadFile(filepath.Join(l.dir, entry.Name()))
		if err != nil {
			return err
		}
		byPod[entry.Name()] = string(level)
	}
	l.byPod = byPod
	return nil
}

// free finds a pair that no pod has. Pairs are drawn, so that a level is not at once another pod's.
func (l *Levels) free() (string, error) {
	taken := make(map[string]bool, len(l.byPod))
	for _, level := range l.byPod {
		taken[level] = true
	}
	if len(taken) >= categories*(categories-1)/4 {
		return "", fmt.Errorf("%d pods have one, which is too many", len(taken))
	}
	for {
		a, b := l.pick()
		if level := fmt.Sprintf("s0:c%d,c%d", min(a, b), max(a, b)); a != b && !taken[level] {
			return level, nil
		}
	}
}
