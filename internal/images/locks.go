package images

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// flock opens path and takes an advisory lock on it; unlock releases it.
func flock(path string, how int) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { f.Close() }, nil
}

// flockContext takes the lock exclusively, or gives up with ctx.
func flockContext(ctx context.Context, path string) (unlock func(), err error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		unlock, err = flock(path, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for pulls and starts to end: %w", ctx.Err())
		case <-tick.C:
		}
	}
}

// HoldStart keeps Prune away until release: take it, Get the digest that Ensure returned (Ensure
// again if it is gone), start the unit that names the image, release. It does not wait for pulls,
// only for a Prune that is under way; do not hold it over a pull.
func (m *Manager) HoldStart() (release func(), err error) {
	return flock(m.path("lock"), unix.LOCK_SH)
}
