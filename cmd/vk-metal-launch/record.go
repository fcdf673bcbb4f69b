//go:build linux

package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// record is a unit's ExecStopPost: it writes how the attempt ended. systemd sends TERM when that
// takes longer than TimeoutStopSec, and KILL after as much time again.
func record(specPath string) int {
	signal.Ignore(unix.SIGTERM)
	spec, err := loadSpec(specPath)
	if spec == nil || spec.ExitRecord == "" {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	leaveHugePages(spec.HugePages)
	exit := exitOf(spec, specPath, os.Getenv)
	exit.OOMKilled = oomKilled() || exit.ServiceResult == "oom-kill"
	if err := writeJSON(spec.ExitRecord, exit); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// exitOf reads systemd's view of the main process from ExecStopPost's environment.
func exitOf(spec *launchspec.Spec, specPath string, getenv func(string) string) launchspec.Exit {
	now := time.Now().UTC().Format(time.RFC3339Nano)
	exit := launchspec.Exit{
		PodUID: spec.PodUID, Container: spec.Container, Attempt: spec.Attempt,
		StartedAt: now, FinishedAt: now, ServiceResult: getenv("SERVICE_RESULT"),
	}
	exit.ExitCode, exit.Signal = exitStatus(getenv("EXIT_CODE"), getenv("EXIT_STATUS"))
	var process launchspec.Process
	if readJSON(processPath(specPath), &process) && process.StartedAt != "" {
		exit.StartedAt = process.StartedAt
	}
	var failure launchspec.StartError
	if readJSON(spec.ErrorRecord, &failure) {
		exit.StartError = &failure
		exit.ExitCode, exit.Signal = failure.Code, 0
	}
	return exit
}

// exitStatus reads $EXIT_CODE and $EXIT_STATUS (systemd.exec(5)). Without them no process
// was ever reaped: that counts as a kill.
func exitStatus(code, status string) (exitCode, signal int) {
	switch code {
	case "exited":
		if n, err := strconv.Atoi(status); err == nil {
			return n, 0
		}
	case "killed", "dumped":
		if n := signalNumber(status); n > 0 {
			return 128 + n, n
		}
	}
	return 128 + int(unix.SIGKILL), int(unix.SIGKILL)
}

// signalNumber knows systemd's names: TERM, RTMIN+3, or a bare number.
func signalNumber(name string) int {
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n)
	}
	const rtmin = 34 // as glibc and systemd count
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		n, _ := strconv.Atoi(strings.TrimPrefix(rest, "+"))
		return rtmin + n
	}
	n, _ := strconv.Atoi(name)
	return n
}

func readJSON(path string, value any) bool {
	data, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(data, value) == nil
}

// oomKilled says whether the kernel killed any process of this unit for want of memory.
// It must run before the cgroup goes: systemd on cgroup v1 never tells.
func oomKilled() bool {
	data, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return false
	}
	file := memoryEventsFile(string(data), "/sys/fs/cgroup", unified())
	events, err := os.ReadFile(file)
	return err == nil && oomKills(string(events)) > 0
}

// memoryEventsFile finds the file that counts OOM kills of the unit's own cgroup.
func memoryEventsFile(cgroups, mount string, v2 bool) string {
	var file string
	for line := range strings.Lines(cgroups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) != 3 {
			continue
		}
		// systemd runs ExecStopPost of a delegated unit in a cgroup of its own.
		path := strings.TrimSuffix(fields[2], "/.control")
		if !v2 && strings.Contains(","+fields[1]+",", ",memory,") {
			return filepath.Join(mount, "memory", path, "memory.oom_control")
		}
		if fields[1] == "" {
			file = filepath.Join(mount, path, "memory.events")
		}
	}
	return file
}

func oomKills(events string) int {
	for line := range strings.Lines(events) {
		if count, ok := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); ok {
			n, _ := strconv.Atoi(count)
			return n
		}
	}
	return 0
}
