//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// child is the second stage: it runs inside its new namespaces, still in the host's
// root, builds the container, waits until systemd knows it as the main process, and
// becomes the workload. It returns only when it could not.
func child(specPath string) int {
	unix.CloseOnExec(childFD)
	ch := channel{fd: childFD}
	err := build(specPath, ch)
	if errors.Is(err, errLauncherGone) {
		return exitOther
	}
	failure := toStartError(err)
	if ch.send(childMessage{Error: failure}) == nil {
		_ = ch.wait() // until the record is written
	}
	return failure.Code
}

var errLauncherGone = errors.New("launcher is gone")

func build(arg string, ch channel) error {
	st, err := loadStage(arg)
	if err != nil {
		return err
	}
	spec := st.spec
	unix.Umask(0)
	if err := isolate(spec); err != nil {
		return err
	}
	if spec.Pause {
		return buildPause(spec, st.scratch, ch)
	}
	stdio, err := st.openStdio()
	if err != nil {
		return err
	}
	lsm, err := openLSM(spec)
	if err != nil {
		return err
	}
	if err := st.buildRoot(); err != nil {
		return err
	}
	if err := stdio.openTerminal(ch); err != nil {
		return err
	}
	user, err := resolveUser(spec)
	if err != nil {
		return err
	}
	if err := ch.send(childMessage{Process: user.process()}); err != nil {
		return errLauncherGone
	}
	if err := ch.wait(); err != nil {
		return errLauncherGone
	}
	if err := stdio.install(user); err != nil {
		return err
	}
	return become(spec, user, lsm, false)
}

// hideSelf closes the ways between us and whoever is in the namespaces already.
func hideSelf(spec *launchspec.Spec) error {
	// Nothing in the container may trace us or look at our files before execve.
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("make launcher undumpable: %w", err)
	}
	if err := unix.CloseRange(childFD, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("mark descriptors close-on-exec: %w", err)
	}
	if _, err := unix.Setsid(); err != nil && !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("start session: %w", err)
	}
	if spec.OOMScoreAdj != nil {
		// Lowering it needs CAP_SYS_RESOURCE, which not every host gives: tried only.
		_ = os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(*spec.OOMScoreAdj)), 0)
	}
	return nil
}

// isolate sets what does not need the new root.
func isolate(spec *launchspec.Spec) error {
	if err := hideSelf(spec); err != nil {
		return err
	}
	if spec.Namespaces.HostUTS || spec.Hostname == "" {
		return nil
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set hostname %q: %w", spec.Hostname, err)
	}
	return nil
}
