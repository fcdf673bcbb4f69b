package rig

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// hierarchy is one mounted cgroup tree of the host.
type hierarchy struct {
	mount       string
	v2          bool
	controllers []string // of a v1 tree
}

// hierarchies lists the host's cgroup trees, each once.
func hierarchies() ([]hierarchy, error) {
	mounts, err := readMounts()
	if err != nil {
		return nil, err
	}
	var hs []hierarchy
	for _, m := range mounts {
		h := hierarchy{mount: m.path, v2: m.fsType == "cgroup2", controllers: strings.Split(m.super, ",")}
		known := slices.ContainsFunc(hs, func(o hierarchy) bool { return o.mount == h.mount })
		if strings.HasPrefix(m.fsType, "cgroup") && !known && strings.HasPrefix(m.path, "/sys/fs/cgroup") {
			hs = append(hs, h)
		}
	}
	if len(hs) == 0 {
		return nil, errors.New("find cgroups: none is mounted under /sys/fs/cgroup")
	}
	return hs, nil
}

// mount is a line of /proc/self/mountinfo.
type mount struct{ path, fsType, super string }

// readMounts lists the mounts that this process sees, in mount order.
func readMounts() ([]mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	defer f.Close()
	var ms []mount
	sc := bufio.NewScanner(f)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		head, tail, ok := strings.Cut(sc.Text(), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if ok && len(h) >= 6 && len(t) >= 3 {
			ms = append(ms, mount{path: unescapeMount(h[4]), fsType: t[0], super: t[2]})
		}
	}
	return ms, sc.Err()
}

// unescapeMount undoes the kernel's \ooo escapes.
func unescapeMount(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// makeCgroup makes cgroup <id>/<name> in every hierarchy and returns its paths. Controllers
// are delegated down to it where the hierarchy needs that.
func makeCgroup(id, name string) ([]string, error) {
	hs, err := hierarchies()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, h := range hs {
		top := filepath.Join(h.mount, id)
		for _, dir := range []string{top, filepath.Join(top, name)} {
			if err := h.makeGroup(dir); err != nil {
				return nil, err
			}
		}
		paths = append(paths, filepath.Join(top, name))
	}
	return paths, nil
}

// makeGroup makes one group and gives it what its parent has.
func (h hierarchy) makeGroup(dir string) error {
	if h.v2 {
		enableControllers(filepath.Dir(dir))
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make cgroup: %w", err)
	}
	if !slices.Contains(h.controllers, "cpuset") || h.v2 {
		return nil
	}
	for _, key := range []string{"cpuset.cpus", "cpuset.mems"} {
		v, err := os.ReadFile(filepath.Join(filepath.Dir(dir), key))
		if err != nil {
			return fmt.Errorf("read parent's cpuset: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, key), v, 0); err != nil {
			return fmt.Errorf("set %s of %s: %w", key, dir, err)
		}
	}
	return os.WriteFile(filepath.Join(dir, "cgroup.clone_children"), []byte("1"), 0)
}

// enableControllers turns on for the children of a v2 group whatever it has itself.
// One that cannot be turned on stays off, as on a host without it.
func enableControllers(dir string) {
	have, _ := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	for _, c := range strings.Fields(string(have)) {
		_ = os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0)
	}
}

// killCgroup kills everything below <id>[/<name>], removes the groups from every hierarchy,
// and returns when both are done. A process on its way into a group either is killed there
// or finds no group to join.
func killCgroup(ctx context.Context, id, name string) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	for _, h := range hs { // first everywhere, so that nobody is left to start others
		if err := killGroup(filepath.Join(h.mount, id, name)); err != nil {
			return err
		}
	}
	for _, h := range hs {
		dir := filepath.Join(h.mount, id, name)
		err := poll(ctx, 5*time.Millisecond, func() (bool, error) {
			if err := killGroup(dir); err != nil {
				return false, err
			}
			return removeGroupTree(dir)
		})
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}

// killGroup sends SIGKILL to everything in a group and below it.
func killGroup(dir string) error {
	_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) // v2 with a kernel that has it
	pids, err := cgroupProcs(dir)
	if err != nil {
		return fmt.Errorf("list processes of cgroup %s: %w", dir, err)
	}
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // gone already is as good
	}
	return nil
}

// cgroupProcs lists the live processes in a group and below it.
func cgroupProcs(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
			return nil
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 && !isZombie(pid) {
				pids = append(pids, pid)
			}
		}
		return err
	})
	return pids, err
}

// removeGroupTree removes a group depth first; false means that the kernel still holds
// one of them busy.
func removeGroupTree(dir string) (bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	for _, e := range entries {
		if !e.IsDir() {
			continue
		}
		if done, err := removeGroupTree(filepath.Join(dir, e.Name())); !done || err != nil {
			return done, err
		}
	}
	err = unix.Rmdir(dir)
	if errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	if errors.Is(err, unix.ENOENT) {
		err = nil
	}
	return err == nil, err
}

// poll calls done until it says true, fails, or ctx ends.
func poll(ctx context.Context, every time.Duration, done func() (bool, error)) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.C:
		}
	}
}
