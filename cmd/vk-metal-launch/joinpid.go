//go:build linux

package main

import (
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// joinPIDNamespace makes the children of this thread members of another unit's PID namespace.
func joinPIDNamespace(of launchspec.UnitProcess) error {
	ns, err := openPIDNamespace(of)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	if err := unix.Setns(ns, unix.CLONE_NEWPID); err != nil {
		return fmt.Errorf("join PID namespace of unit %s: %w", of.Unit, err)
	}
	return nil
}

// openPIDNamespace opens another unit's PID namespace. The directory in /proc stays the one
// process's that it was opened for: that its cgroup is the unit's proves that the number has
// not gone to somebody else.
func openPIDNamespace(of launchspec.UnitProcess) (int, error) {
	dir, err := unix.Open("/proc/"+strconv.Itoa(of.PID), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("join PID namespace: unit %s is not running: %w", of.Unit, err)
	}
	defer unix.Close(dir)
	theirs, err := readAt(dir, "cgroup")
	if err != nil {
		return -1, fmt.Errorf("join PID namespace: unit %s is not running: %w", of.Unit, err)
	}
	own, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return -1, fmt.Errorf("join PID namespace: read own cgroups: %w", err)
	}
	if !besideUs(string(own), string(theirs), of.Unit) {
		return -1, fmt.Errorf("join PID namespace: process %d is not of unit %s", of.PID, of.Unit)
	}
	ns, err := unix.Openat(dir, "ns/pid", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("join PID namespace: unit %s is not running: %w", of.Unit, err)
	}
	return ns, nil
}

func readAt(dir int, name string) ([]byte, error) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	return io.ReadAll(file)
}

// besideUs says whether a process is in the unit that lies in the same slice as ours. Both
// texts are of /proc/PID/cgroup; a process may have gone into a group of its own below
// the unit's.
func besideUs(own, theirs, unit string) bool {
	mine := systemdGroup(own)
	if mine == "" || unit == "" {
		return false
	}
	want := path.Join(path.Dir(mine), unit)
	got := systemdGroup(theirs)
	return got == want || strings.HasPrefix(got, want+"/")
}

// systemdGroup is the path in the hierarchy by which systemd knows processes: its own one
// on v1, the unified one on v2. On a hybrid host both are there and say the same.
func systemdGroup(cgroups string) string {
	unified := ""
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(fields) != 3:
		case fields[1] == "name=systemd":
			return fields[2]
		case fields[0] == "0":
			unified = fields[2]
		}
	}
	return unified
}
