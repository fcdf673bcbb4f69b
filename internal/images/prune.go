package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// PruneOptions says what Prune may remove.
type PruneOptions struct {
	// MinAge keeps images that were pulled or used less long ago; the kubelet's default is 2 minutes.
	MinAge time.Duration
	// FreeBytes stops once so much was freed, least recently used first; 0 removes all that is unused.
	FreeBytes int64
}

// Pruned is what Prune removed.
type Pruned struct {
	Images []string // digests, or IDs where an image had none
	Layers int
	Bytes  int64 // on disk
}

// Prune removes images that nothing uses. inUse returns the digests (or IDs) of live units and of
// pods about to start; it is asked while no pull is under way and no start is held (HoldStart), so
// its answer stays true. Prune waits for those with ctx.
func (m *Manager) Prune(ctx context.Context, inUse func() ([]string, error), opts PruneOptions) (Pruned, error) {
	unlock, err := flockContext(ctx, m.path("lock"))
	if err != nil {
		return Pruned{}, fmt.Errorf("prune images: %w", err)
	}
	defer unlock()
	used, err := inUse()
	if err != nil {
		return Pruned{}, fmt.Errorf("prune images: list those in use: %w", err)
	}
	records, err := m.Records()
	if err != nil {
		return Pruned{}, fmt.Errorf("prune images: %w", err)
	}
	var out Pruned
	for _, r := range pruneOrder(records, used, time.Now().Add(-opts.MinAge)) {
		if opts.FreeBytes > 0 && out.Bytes >= opts.FreeBytes {
			break
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		if err := m.index.remove(r.ID); err != nil {
			return out, fmt.Errorf("prune images: %w", err)
		}
		out.Images = append(out.Images, m.image(r).Digest)
		if err := m.pruneLayers(&out); err != nil {
			return out, fmt.Errorf("prune images: %w", err)
		}
	}
	return out, errors.Join(m.pruneLayers(&out), m.pruneIngest())
}

// pruneOrder keeps the order (least recently used first) and leaves out what must stay.
func pruneOrder(records []Record, used []string, before time.Time) []Record {
	return slices.DeleteFunc(records, func(r Record) bool {
		return !r.LastUsed.Before(before) || slices.ContainsFunc(used, r.matches)
	})
}

// pruneLayers removes the layers that no record names. The exclusive lock is held.
func (m *Manager) pruneLayers(out *Pruned) error {
	records, err := m.index.all()
	if err != nil {
		return err
	}
	named := map[string]bool{}
	for _, r := range records {
		for _, key := range r.Layers {
			named[key] = true
		}
	}
	entries, err := os.ReadDir(m.path("layers"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if named[e.Name()] {
			continue
		}
		size, err := m.removeLayer(e.Name())
		if err != nil {
			return fmt.Errorf("remove layer %s: %w", e.Name(), err)
		}
		out.Layers++
		out.Bytes += size
	}
	return nil
}

// removeLayer takes the name away first: a crash leaves a temporary directory, not half a layer.
func (m *Manager) removeLayer(key string) (size int64, err error) {
	tmp := m.path("tmp", "prune-"+key)
	if err := os.RemoveAll(tmp); err != nil {
		return 0, err
	}
	if err := os.Rename(m.path("layers", key), tmp); err != nil {
		return 0, err
	}
	return diskUsage(tmp), os.RemoveAll(tmp)
}

// ingestAge is how long an interrupted download is kept to be taken up again.
const ingestAge = 24 * time.Hour

var wholeBlob = regexp.MustCompile(`\.[0-9]+$`)

// pruneIngest removes old partial downloads, and whole ones that a crash left behind: no pull is
// under way.
func (m *Manager) pruneIngest() error {
	entries, err := os.ReadDir(m.path("ingest"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || !wholeBlob.MatchString(e.Name()) && time.Since(info.ModTime()) < ingestAge {
			continue
		}
		errs = append(errs, os.Remove(filepath.Join(m.path("ingest"), e.Name())))
	}
	return errors.Join(errs...)
}
