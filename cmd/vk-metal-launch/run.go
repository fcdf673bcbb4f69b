//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// stageChild names the second stage: this program again, inside its new namespaces.
const stageChild = "child"

// childFD is where the child finds its end of the channel.
const childFD = 3

// run is a unit's ExecStart. It clones the workload as systemd's own child
// (CLONE_PARENT), makes it the unit's main process, lets it go once systemd knows, and
// reports READY=1 once execve has succeeded, so that "started" means started.
func run(specPath string) int {
	spec, err := loadSpec(specPath)
	if err == nil {
		err = launch(spec, specPath)
	}
	if err == nil {
		return 0
	}
	return fail(spec, toStartError(err))
}

// fail records why the container cannot start and returns the exit code. It runs where
// the launcher itself is still the unit's main process.
func fail(spec *launchspec.Spec, failure *launchspec.StartError) int {
	fmt.Fprintln(os.Stderr, failure.Message)
	if spec != nil && spec.ErrorRecord != "" {
		if err := writeJSON(spec.ErrorRecord, failure); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
	return failure.Code
}

func launch(spec *launchspec.Spec, specPath string) error {
	restoreOpenFiles()
	notify, err := newNotifier()
	if err != nil {
		return err
	}
	if err := limitHugePages(spec.HugePages); err != nil {
		return err
	}
	if err := joinNamespaces(spec.Namespaces); err != nil {
		return err
	}
	parent, childEnd, err := newChannels()
	if err != nil {
		return err
	}
	pid, ready, err := startChild(spec, specPath, childEnd)
	unix.Close(childEnd.fd)
	if err != nil {
		return err
	}
	if err := notify.appoint(pid); err != nil {
		return err // the child sees our end closed and gives up
	}
	return attend(spec, specPath, parent, ready, func() error { return notify.running(pid) })
}

// startChild starts the second stage; ready is what it was given, nil outside of user namespaces.
func startChild(spec *launchspec.Spec, specPath string, child channel) (pid int, ready *handoff, err error) {
	if spec.Namespaces.User != nil {
		return launchMapped(spec, child)
	}
	pid, err = cloneChild(specPath, cloneFlags(spec.Namespaces)|unix.CLONE_PARENT, child.fd)
	return pid, nil, err
}

// attend follows the child until it has become the workload or failed. From here on the
// child is the unit's main process: its exit code counts, ours does not.
func attend(spec *launchspec.Spec, specPath string, child channel, ready *handoff, running func() error) error {
	for {
		message, err := child.receive()
		switch {
		case errors.Is(err, io.EOF):
			return running()
		case err != nil:
			return err
		case message.Error != nil:
			fail(spec, message.Error)
			return child.release() // now it may exit
		case message.Terminal && message.fd >= 0:
			if err := handOver(spec.Terminal, message.fd); err != nil {
				return err
			}
			if err := child.release(); err != nil {
				return fmt.Errorf("release container process: %w", err)
			}
			continue
		}
		if ready != nil {
			if err := giveStreams(spec, ready.Streams[:], message.Process.UID); err != nil {
				return err
			}
		}
		message.Process.Rlimits = currentRlimits()
		message.Process.StartedAt = time.Now().UTC().Format(time.RFC3339Nano)
		if err := writeJSON(processPath(specPath), message.Process); err != nil {
			return err
		}
		if err := child.release(); err != nil {
			return fmt.Errorf("release container process: %w", err)
		}
	}
}

func cloneFlags(ns launchspec.Namespaces) uintptr {
	flags := uintptr(unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP)
	if !ns.HostPID && ns.PIDOf == nil {
		flags |= unix.CLONE_NEWPID
	}
	if !ns.HostUTS {
		flags |= unix.CLONE_NEWUTS
	}
	if !ns.HostIPC && ns.IPC == "" {
		flags |= unix.CLONE_NEWIPC
	}
	if !ns.HostNet && ns.Net == "" {
		flags |= unix.CLONE_NEWNET
	}
	return flags
}

func joinNamespaces(ns launchspec.Namespaces) error {
	joins := []struct {
		path string
		kind int
		host bool
	}{
		{ns.IPC, unix.CLONE_NEWIPC, ns.HostIPC},
		{ns.Net, unix.CLONE_NEWNET, ns.HostNet},
	}
	for _, join := range joins {
		if join.path == "" || join.host {
			continue
		}
		if err := joinNamespace(join.path, join.kind); err != nil {
			return err
		}
	}
	if ns.PIDOf == nil || ns.HostPID || ns.User != nil {
		return nil // with a user namespace it is joined from inside
	}
	return joinPIDNamespace(*ns.PIDOf)
}

func joinNamespace(path string, kind int) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open namespace %s: %w", path, err)
	}
	defer unix.Close(fd)
	if err := unix.Setns(fd, kind); err != nil {
		return fmt.Errorf("join namespace %s: %w", path, err)
	}
	return nil
}

// cloneChild starts the second stage. It inherits this thread's namespaces.
func cloneChild(specPath string, flags uintptr, channelFD int) (int, error) {
	self, err := readonlySelf()
	if err != nil {
		return 0, err
	}
	pid, err := syscall.ForkExec(descriptorPath(self), []string{"vk-metal-launch", stageChild, specPath}, &syscall.ProcAttr{
		Env:   []string{"GOMAXPROCS=1", "GOGC=off"},
		Files: []uintptr{0, 1, 2, uintptr(channelFD)},
		Sys:   &syscall.SysProcAttr{Cloneflags: flags},
	})
	if err != nil {
		return 0, fmt.Errorf("clone container process: %w", err)
	}
	return pid, nil
}

// firstHeld is where descriptors begin that others' renumbering must not meet: ForkExec's, and
// that of the few with fixed numbers. It is below 64: beyond, the kernel makes the table of
// descriptors bigger, and waits for an RCU grace period then, some 10 ms, as a Go program has
// several threads (expand_fdtable in fs/file.c). A table that systemd hands on may be bigger.
const firstHeld = 40

// readonlySelf returns a descriptor of this program on a detached read-only mount. A workload
// that gets hold of /proc/PID/exe of a launcher that is inside its namespaces
// (CVE-2019-5736) cannot write to the host's file through it.
func readonlySelf() (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/proc/self/exe", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone mount of launcher: %w", err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		return -1, fmt.Errorf("make launcher read-only: %w", err)
	}
	return moveFD(tree, unix.F_DUPFD_CLOEXEC)
}

// descriptorPath leads to what a descriptor refers to, as long as it is open.
func descriptorPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }
