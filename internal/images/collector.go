package images

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// CollectorOptions are a kubelet's settings of image garbage collection.
type CollectorOptions struct {
	// High and Low are percentages of the image file system in use: at High images are
	// removed until Low is reached. High 100 removes none.
	High, Low int
	// MinAge keeps images that were used less long ago.
	MinAge time.Duration
	// InUse returns the digests (or IDs) that must stay; see Manager.Prune.
	InUse func(ctx context.Context) ([]string, error)
	// Event tells the Node's readers: a reason of the kubelet's and a message. May be nil.
	Event func(reason, message string)
	Log   *slog.Logger
	// Usage replaces the file system's figures in tests; bytes.
	Usage func() (capacity, available int64, err error)
}

// Reasons of a kubelet's events on its Node.
const (
	ReasonImageGCFailed       = "ImageGCFailed"
	ReasonFreeDiskSpaceFailed = "FreeDiskSpaceFailed"
	ReasonInvalidDiskCapacity = "InvalidDiskCapacity"
)

const (
	collectEvery = 5 * time.Minute // the kubelet's ImageGCPeriod
	// pruneWait is how long one round waits for pulls to end.
	pruneWait = 2 * time.Minute
)

// Collector keeps the image file system below a threshold.
type Collector struct {
	m *Manager
	o CollectorOptions

	mu     sync.Mutex
	failed error // of the last round
}

// NewCollector makes a Collector of the manager's images.
func NewCollector(m *Manager, o CollectorOptions) *Collector {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Event == nil {
		o.Event = func(string, string) {}
	}
	if o.Usage == nil {
		o.Usage = m.usage
	}
	return &Collector{m: m, o: o}
}

// Run collects every five minutes until ctx ends.
func (c *Collector) Run(ctx context.Context) error {
	tick := time.NewTicker(collectEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		c.round(ctx)
	}
}

// round collects once and tells of it; a kubelet makes an event of ImageGCFailed when two
// rounds in a row have failed.
func (c *Collector) round(ctx context.Context) {
	err := c.Collect(ctx)
	if ctx.Err() != nil {
		return
	}
	c.mu.Lock()
	before := c.failed
	c.failed = err
	c.mu.Unlock()
	if err == nil {
		return
	}
	c.o.Log.Error("image garbage collection failed", "err", err)
	if before != nil {
		c.o.Event(ReasonImageGCFailed, err.Error())
	}
}

// Collect removes unused images, least recently used first, if the file system is fuller
// than High. It is an error when Low cannot be reached.
func (c *Collector) Collect(ctx context.Context) error {
	capacity, available, err := c.o.Usage()
	if err != nil {
		return fmt.Errorf("collect images: %w", err)
	}
	if capacity <= 0 {
		err := errors.New("invalid capacity 0 on image filesystem")
		c.o.Event(ReasonInvalidDiskCapacity, err.Error())
		return fmt.Errorf("collect images: %w", err)
	}
	available = min(available, capacity)
	used := 100 - int(available*100/capacity)
	if c.o.High >= 100 || used < c.o.High {
		return nil
	}
	want := capacity*int64(100-c.o.Low)/100 - available
	c.o.Log.Info("disk usage on image filesystem is over the high threshold, trying to free bytes down to the low threshold",
		"usage", used, "high", c.o.High, "low", c.o.Low, "bytes", want)
	freed, err := c.free(ctx, want)
	if err != nil {
		return fmt.Errorf("collect images: %w", err)
	}
	if freed < want {
		err := fmt.Errorf("failed to garbage collect required amount of images: attempted to free %d bytes, but only found %d bytes eligible to free", want, freed)
		c.o.Event(ReasonFreeDiskSpaceFailed, err.Error())
		return err
	}
	return nil
}

// DeleteUnused removes all images that nothing uses, for want of disk.
func (c *Collector) DeleteUnused(ctx context.Context) error {
	if _, err := c.free(ctx, math.MaxInt64); err != nil {
		return fmt.Errorf("remove unused images: %w", err)
	}
	return nil
}

// free removes one image after the other, so that no start waits for more than one.
func (c *Collector) free(ctx context.Context, want int64) (freed int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, pruneWait)
	defer cancel()
	for freed < want {
		got, err := c.m.Prune(ctx, func() ([]string, error) { return c.o.InUse(ctx) }, PruneOptions{MinAge: c.o.MinAge, FreeBytes: 1})
		freed += got.Bytes
		for _, name := range got.Images {
			c.o.Log.Info("image removed to free space", "image", name)
		}
		if err != nil {
			return freed, err
		}
		if len(got.Images) == 0 && got.Bytes == 0 {
			break
		}
	}
	return freed, nil
}

// usage is the store's file system.
func (m *Manager) usage() (capacity, available int64, err error) {
	var s unix.Statfs_t
	if err := unix.Statfs(m.opts.Root, &s); err != nil {
		return 0, 0, fmt.Errorf("read file system of %s: %w", m.opts.Root, err)
	}
	return int64(s.Blocks) * s.Frsize, int64(s.Bavail) * s.Frsize, nil
}
