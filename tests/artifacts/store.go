// Package artifacts builds what the rig runs (Kubernetes, agnhost, vk-metal's own
// packages) once and keeps it, keyed by everything that went into it. It owns the
// cache directory; it must not know machines or clusters.
package artifacts

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// Keep is how many results of one recipe stay in the cache.
const Keep = 4

// Store is a directory of results: <name>/<key>/… . Several processes may use one.
type Store struct {
	dir      string
	progress *progress.Printer
}

// Recipe makes one artifact.
type Recipe struct {
	// Name is the artifact's name, a plain file name.
	Name string
	// Inputs are all that the result depends on; another input is another result.
	Inputs []string
	// Build writes the result's files into dir, which is empty, and reports on step.
	Build func(ctx context.Context, dir string, step *progress.Step) error
}

// DefaultDir is $VK_METAL_CACHE or /var/cache/vk-metal-rig.
func DefaultDir() string {
	if dir := os.Getenv("VK_METAL_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/vk-metal-rig"
}

// NewStore opens the cache in dir ("" for DefaultDir), making it if it is missing.
func NewStore(dir string, printer *progress.Printer) (*Store, error) {
	if dir == "" {
		dir = DefaultDir()
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the cache: %w", err)
	}
	return &Store{dir: dir, progress: printer}, nil
}

// Get returns the directory of the recipe's result and builds it first where it is
// missing. One process builds, others wait for it. A result is whole or absent: it
// is made under another name and renamed.
func (s *Store) Get(ctx context.Context, r Recipe) (string, error) {
	result := filepath.Join(s.dir, r.Name, r.key())
	if used(result) {
		return result, nil
	}
	if err := os.MkdirAll(filepath.Dir(result), 0o755); err != nil {
		return "", fmt.Errorf("make the cache of %s: %w", r.Name, err)
	}
	step := s.progress.Step("build %s", r.Name)
	err := s.buildLocked(ctx, r, result, step)
	return result, step.Done(err)
}

func (s *Store) buildLocked(ctx context.Context, r Recipe, result string, step *progress.Step) error {
	step.Note("waiting for another builder")
	unlock, err := lock(ctx, filepath.Join(s.dir, r.Name, "lock"))
	if err != nil {
		return fmt.Errorf("build %s: %w", r.Name, err)
	}
	defer unlock()
	step.Note("")
	if used(result) {
		return nil
	}
	partial := result + ".partial"
	if err := os.RemoveAll(partial); err != nil {
		return fmt.Errorf("remove a broken build: %w", err)
	}
	if err := os.Mkdir(partial, 0o755); err != nil {
		return fmt.Errorf("build %s: %w", r.Name, err)
	}
	if err := r.Build(ctx, partial, step); err != nil {
		return errors.Join(fmt.Errorf("build %s: %w", r.Name, err), os.RemoveAll(partial))
	}
	if err := os.Rename(partial, result); err != nil {
		return fmt.Errorf("keep %s: %w", r.Name, err)
	}
	return prune(filepath.Dir(result), result)
}

// key is a short hash of the recipe's name and inputs.
func (r Recipe) key() string {
	sum := sha256.New()
	for _, input := range append([]string{r.Name}, r.Inputs...) {
		_, _ = fmt.Fprintf(sum, "%d:%s\n", len(input), input)
	}
	return hex.EncodeToString(sum.Sum(nil))[:24]
}

// used says whether the result is there, and marks it as just used.
func used(result string) bool {
	now := time.Now()
	return os.Chtimes(result, now, now) == nil
}

// lock takes an exclusive lock on file; it waits as long as ctx lives.
func lock(ctx context.Context, file string) (unlock func(), err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock %s: %w", file, err), f.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("lock %s: %w", file, ctx.Err()), f.Close())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// prune removes all but the Keep results of dir that were used last, and never keep.
func prune(dir, keep string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list old results: %w", err)
	}
	var old []fs.FileInfo
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || !entry.IsDir() || entry.Name() == filepath.Base(keep) {
			continue
		}
		old = append(old, info)
	}
	sort.Slice(old, func(i, j int) bool { return old[i].ModTime().After(old[j].ModTime()) })
	for i := Keep - 1; i < len(old); i++ {
		if err := os.RemoveAll(filepath.Join(dir, old[i].Name())); err != nil {
			return fmt.Errorf("remove an old result: %w", err)
		}
	}
	return nil
}

// HashTree is the hash of the names, modes and contents of all files below the
// roots for which keep (given a slash-separated path) returns true.
func HashTree(base string, roots []string, keep func(path string) bool) (string, error) {
	sum := sha256.New()
	for _, root := range roots {
		err := filepath.WalkDir(filepath.Join(base, root), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !entry.Type().IsRegular() || !keep(filepath.ToSlash(path)) {
				return err
			}
			return hashFile(sum, base, path)
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("hash %s: %w", root, err)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func hashFile(sum io.Writer, base, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	name, err := filepath.Rel(base, path)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(sum, "%s %o %d\n", name, info.Mode().Perm(), info.Size()); err != nil {
		return err
	}
	_, err = io.Copy(sum, f)
	return err
}
