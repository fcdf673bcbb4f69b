package images

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCollector fills a file system of 1000 kB with three images of about 100 kB each, of
// which the second is in use.
func TestCollector(t *testing.T) {
	const kB = 1000
	for name, tc := range map[string]struct {
		available int64 // before
		high      int
		minAge    time.Duration
		inUse     error
		left      []int
		events    []string
		err       string
	}{
		"below the threshold": {available: 160 * kB, high: 85, left: []int{0, 1, 2}},
		"at the threshold":    {available: 150 * kB, high: 85, left: []int{1, 2}},
		"two have to go":      {available: 20 * kB, high: 85, left: []int{1}},
		"turned off":          {available: 0, high: 100, left: []int{0, 1, 2}},
		"too young": {
			available: 20 * kB, high: 85, minAge: 100 * time.Hour, left: []int{0, 1, 2}, events: []string{ReasonFreeDiskSpaceFailed},
			err: "only found 0 bytes eligible",
		},
		"not enough":      {available: -100 * kB, high: 85, left: []int{1}, events: []string{ReasonFreeDiskSpaceFailed}, err: "attempted to free 300000 bytes"},
		"systemd is away": {available: 20 * kB, high: 85, inUse: errors.New("no bus"), left: []int{0, 1, 2}, err: "no bus"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, nil)
			m := testManager(t, nil)
			imgs := threeImages(t, m, reg, 100*kB)
			var events []string
			c := NewCollector(m, CollectorOptions{
				High: tc.high, Low: 80, MinAge: tc.minAge, Log: m.log,
				InUse: func(context.Context) ([]string, error) { return []string{imgs[1].Digest}, tc.inUse },
				Event: func(reason, _ string) { events = append(events, reason) },
				Usage: func() (int64, int64, error) { return 1000 * kB, tc.available, nil },
			})
			err := c.Collect(t.Context())
			if tc.err == "" && err != nil || tc.err != "" && (err == nil || !strings.Contains(err.Error(), tc.err)) {
				t.Errorf("Collect = %v, want %q", err, tc.err)
			}
			for i, img := range imgs {
				if _, ok, err := m.Get(t.Context(), img.Digest); err != nil || ok != slices.Contains(tc.left, i) {
					t.Errorf("image %d: present %t %v", i, ok, err)
				}
			}
			if !slices.Equal(events, tc.events) {
				t.Errorf("events %v, want %v", events, tc.events)
			}
		})
	}
}

// threeImages pulls images of that size, the first the least recently used.
func threeImages(t *testing.T, m *Manager, reg *testRegistry, size int) (imgs []Image) {
	t.Helper()
	for i, name := range []string{"a", "b", "c"} {
		layer := tarOf(t, file("f", strings.Repeat(name, size)))
		reg.push(t, name, "v1", buildImage(t, ocispec.ImageConfig{Cmd: []string{name}}, gz, layer))
		imgs = append(imgs, mustEnsure(t, m, reg.host+"/"+name+":v1"))
		r, _, err := m.index.find(imgs[i].Digest)
		if err != nil {
			t.Fatal(err)
		}
		used := time.Now().Add(time.Duration(i-50) * time.Hour)
		if err := os.Chtimes(m.index.file(r.ID), used, used); err != nil {
			t.Fatal(err)
		}
	}
	return imgs
}

// TestCollectorTellsOfFailuresInARow makes an event of the second failure, not of the first.
func TestCollectorTellsOfFailuresInARow(t *testing.T) {
	var events []string
	fails := true
	c := NewCollector(testManager(t, nil), CollectorOptions{
		High: 85, Low: 80, Event: func(reason, _ string) { events = append(events, reason) },
		Usage: func() (int64, int64, error) {
			if fails {
				return 0, 0, errors.New("stale file handle")
			}
			return 100, 100, nil
		},
	})
	for _, fails = range []bool{true, false, true, true, true} {
		c.round(t.Context())
	}
	if want := []string{ReasonImageGCFailed, ReasonImageGCFailed}; !slices.Equal(events, want) {
		t.Errorf("events %v, want %v", events, want)
	}
}
