//go:build linux

package main

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

var rlimits = map[string]int{
	"AS": unix.RLIMIT_AS, "CORE": unix.RLIMIT_CORE, "CPU": unix.RLIMIT_CPU, "DATA": unix.RLIMIT_DATA,
	"FSIZE": unix.RLIMIT_FSIZE, "LOCKS": unix.RLIMIT_LOCKS, "MEMLOCK": unix.RLIMIT_MEMLOCK,
	"MSGQUEUE": unix.RLIMIT_MSGQUEUE, "NICE": unix.RLIMIT_NICE, "NOFILE": unix.RLIMIT_NOFILE,
	"NPROC": unix.RLIMIT_NPROC, "RSS": unix.RLIMIT_RSS, "RTPRIO": unix.RLIMIT_RTPRIO,
	"RTTIME": unix.RLIMIT_RTTIME, "SIGPENDING": unix.RLIMIT_SIGPENDING, "STACK": unix.RLIMIT_STACK,
}

// setRlimits lowers a limit that the host does not let us raise to the nearest allowed one.
func setRlimits(limits []launchspec.Rlimit) error {
	for _, limit := range limits {
		kind, ok := rlimits[limit.Type]
		if !ok {
			return fmt.Errorf("unknown rlimit %q", limit.Type)
		}
		want := &unix.Rlimit{Cur: limit.Soft, Max: limit.Hard}
		err := unix.Prlimit(0, kind, want, nil)
		if errors.Is(err, unix.EPERM) {
			var now unix.Rlimit
			if err = unix.Prlimit(0, kind, nil, &now); err == nil {
				err = unix.Prlimit(0, kind, &unix.Rlimit{Cur: min(want.Cur, now.Max), Max: min(want.Max, now.Max)}, nil)
			}
		}
		if err != nil {
			return fmt.Errorf("set rlimit %s to %d:%d: %w", limit.Type, limit.Soft, limit.Hard, err)
		}
	}
	return nil
}

// restoreOpenFiles undoes what Go's start does to the soft limit of open files. Only an execve
// of package syscall knows what it was, and puts it back before it fails.
func restoreOpenFiles() { _ = syscall.Exec("/", nil, nil) }

// currentRlimits are all limits of this process.
func currentRlimits() []launchspec.Rlimit {
	var out []launchspec.Rlimit
	for _, name := range slices.Sorted(maps.Keys(rlimits)) {
		var now unix.Rlimit
		if unix.Prlimit(0, rlimits[name], nil, &now) == nil {
			out = append(out, launchspec.Rlimit{Type: name, Soft: now.Cur, Hard: now.Max})
		}
	}
	return out
}
