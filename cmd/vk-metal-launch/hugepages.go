//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// groups is where the cgroup file systems are mounted; systemd has no properties for huge
// pages and makes no groups for them.
type groups struct{ mount string }

var hostGroups = groups{"/sys/fs/cgroup"}

// own is the path of this process in the unified hierarchy (0::/…), which systemd uses for
// units on hybrid hosts, too; on a host with v1 alone in its own hierarchy.
func own(table string) (string, error) {
	fallback := ""
	for line := range strings.Lines(table) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[0] == "0" && fields[1] == "":
			return fields[2], nil
		case fields[1] == "name=systemd":
			fallback = fields[2]
		}
	}
	if fallback == "" {
		return "", errors.New("find own cgroup: systemd's is not among those of /proc/self/cgroup")
	}
	return fallback, nil
}

// limitHugePages limits this process' group, and the pod's slice above it, before anything of the
// container runs.
func limitHugePages(limits []launchspec.HugePages) error {
	if len(limits) == 0 {
		return nil
	}
	table, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return fmt.Errorf("limit huge pages: %w", err)
	}
	path, err := own(string(table))
	if err != nil {
		return fmt.Errorf("limit huge pages: %w", err)
	}
	if err := hostGroups.limit(path, os.Getpid(), limits); err != nil {
		return fmt.Errorf("limit huge pages: %w", err)
	}
	return nil
}

// limit finds the hierarchy that counts huge pages, if there is one.
func (g groups) limit(path string, pid int, limits []launchspec.HugePages) error {
	if root := filepath.Join(g.mount, "hugetlb"); isDir(root) {
		return limitV1(root, path, pid, limits)
	}
	for _, root := range []string{g.mount, filepath.Join(g.mount, "unified")} {
		controllers, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err == nil && strings.Contains(" "+strings.TrimSpace(string(controllers))+" ", " hugetlb ") {
			return limitV2(root, path, limits)
		}
	}
	return nil // the agent has refused pods that need them
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// limitV2 turns the controller on from the root down: systemd neither does nor undoes that.
func limitV2(root, path string, limits []launchspec.HugePages) error {
	parent := filepath.Dir(path)
	at := root
	for _, part := range append([]string{""}, strings.Split(strings.Trim(parent, "/"), "/")...) {
		at = filepath.Join(at, part)
		if err := writeGroup(filepath.Join(at, "cgroup.subtree_control"), "+hugetlb"); err != nil {
			return err
		}
	}
	return setLimits(filepath.Join(root, parent), filepath.Join(root, path), "max", limits)
}

// limitV1 makes groups of the same names as systemd's, and moves this process there.
func limitV1(root, path string, pid int, limits []launchspec.HugePages) error {
	group := filepath.Join(root, path)
	if err := os.MkdirAll(group, 0o755); err != nil {
		return err
	}
	if err := setLimits(filepath.Dir(group), group, "limit_in_bytes", limits); err != nil {
		return err
	}
	return writeGroup(filepath.Join(group, "cgroup.procs"), strconv.Itoa(pid))
}

// setLimits limits what is used and, where the kernel knows that (5.7), what is reserved: then
// mmap fails, and no access to memory later.
func setLimits(pod, container, file string, limits []launchspec.HugePages) error {
	for _, l := range limits {
		for group, bytes := range map[string]uint64{pod: l.Pod, container: l.Container} {
			name := filepath.Join(group, "hugetlb."+l.Size)
			if err := writeGroup(name+"."+file, strconv.FormatUint(bytes, 10)); err != nil {
				return err
			}
			err := writeGroup(name+".rsvd."+file, strconv.FormatUint(bytes, 10))
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// writeGroup writes a file of the kernel's that is there.
func writeGroup(path, text string) error {
	file, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}

// leaveHugePages removes the groups that limitV1 has made, as far as they are empty. It runs in
// the unit's own group after the container's end.
func leaveHugePages(limits []launchspec.HugePages) {
	table, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || len(limits) == 0 {
		return
	}
	if path, err := own(string(table)); err == nil {
		hostGroups.leave(path)
	}
}

func (g groups) leave(path string) {
	root := filepath.Join(g.mount, "hugetlb")
	for path = filepath.Clean(path); path != "/" && path != "."; path = filepath.Dir(path) {
		if os.Remove(filepath.Join(root, path)) != nil {
			return
		}
	}
}
