package rig

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// downTimeout bounds how long Down waits for the kernel to let go.
const downTimeout = 60 * time.Second

// Down removes the rig of a state directory, if there is one, however broken: it kills
// all machines and processes and removes all that the rig made outside and inside of dir,
// except for dir/logs. It is idempotent; a directory without a rig is not an error.
func Down(ctx context.Context, dir string) error {
	s, err := readState(dir)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	r := &Rig{dir: dir, id: s.ID}
	return r.Down(ctx)
}

// Down does what the function Down does for the rig's directory.
func (r *Rig) Down(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	unlock, err := lockPath(filepath.Join(r.dir, lockFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readState(r.dir)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context, *state) error{
		r.downProcesses, r.downKernel, leaveHost, r.downFiles,
	} {
		if err := step(ctx, s); err != nil {
			return fmt.Errorf("take down rig %s: %w", r.dir, err)
		}
	}
	return nil
}

// downProcesses kills everything in the rig's cgroups and removes these.
func (r *Rig) downProcesses(ctx context.Context, _ *state) error {
	r.killLeaders(ctx)
	return killCgroup(ctx, r.id, "")
}

// killLeaders ends all containers so that their nspawn can tidy up after them, and
// waits for that a little. What it misses, killing the cgroup gets.
func (r *Rig) killLeaders(ctx context.Context) {
	files, _ := filepath.Glob(filepath.Join(r.dir, "machines", "*", leaderFile))
	for _, path := range files {
		b, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		var pid int
		var start uint64
		if _, err := fmt.Sscan(string(b), &pid, &start); err != nil {
			continue
		}
		if now, zombie, err := procStat(pid); err != nil || zombie || now != start {
			continue
		}
		_ = unix.Kill(pid, unix.SIGKILL)
	}
	ctx, cancel := context.WithTimeout(ctx, killGrace)
	defer cancel()
	_ = poll(ctx, 5*time.Millisecond, func() (bool, error) {
		return r.payloadsGone(), nil
	})
}

// payloadsGone reports whether no machine's cgroup has a process.
func (r *Rig) payloadsGone() bool {
	hs, err := hierarchies()
	if err != nil {
		return true
	}
	for _, h := range hs {
		dirs, _ := filepath.Glob(filepath.Join(h.mount, r.id, "payload-*"))
		for _, dir := range dirs {
			if pids, err := cgroupProcs(dir); err == nil && len(pids) > 0 {
				return false
			}
		}
	}
	return true
}

// downKernel removes namespaces, links, mounts and loop devices.
func (r *Rig) downKernel(context.Context, *state) error {
	if err := r.removeNetwork(); err != nil {
		return err
	}
	if err := r.unmountAll(); err != nil {
		return err
	}
	return detachLoops(r.roots()...)
}

// unmountAll detaches every mount below the rig's directory, the last first.
func (r *Rig) unmountAll() error {
	ms, err := readMounts()
	if err != nil {
		return err
	}
	for i := len(ms) - 1; i >= 0; i-- {
		if !strings.HasPrefix(ms[i].path, r.dir+"/") {
			continue
		}
		if err := unix.Unmount(ms[i].path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w", ms[i].path, err)
		}
	}
	return nil
}

// downFiles keeps the consoles with the logs and removes the rest of what is the
// rig's, its state last.
func (r *Rig) downFiles(_ context.Context, s *state) error {
	for _, m := range s.Machines {
		r.keepConsole(m.Name)
	}
	leftovers, _ := filepath.Glob("/run/systemd/nspawn/*/" + r.id + "-*")
	halfWritten, _ := filepath.Glob(filepath.Join(r.dir, "."+stateFile+".*"))
	for _, path := range append(append(leftovers, halfWritten...), filepath.Join(r.dir, "machines"), filepath.Join(r.dir, stateFile), filepath.Join(r.dir, lockFile)) {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}
