//go:build linux

// Command vk-metal-launch turns a systemd unit's main process into a container and
// leaves nothing behind. It owns what happens between systemd's fork and the
// workload's execve; it must not know pods, images or the API server: all that it
// needs is in a launchspec.Spec. Standard library and golang.org/x/sys only.
//
//	vk-metal-launch run SPEC      ExecStart of a container's unit
//	vk-metal-launch record SPEC   ExecStopPost: writes the exit record
//	vk-metal-launch exec SPEC PID -- ARGS…  one more process in a running container
package main

import (
	"fmt"
	"os"
	"runtime"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// Namespaces, credentials and seccomp belong to a thread: everything that changes them
// runs on the main one, which is also the one that calls execve.
func init() { runtime.LockOSThread() }

func main() {
	if len(os.Args) == 1 && os.Args[0] == launchspec.PauseProgram {
		os.Exit(pause())
	}
	if len(os.Args) < 3 {
		usage()
	}
	var code int
	switch os.Args[1] {
	case "run":
		code = run(os.Args[2])
	case stageChild:
		code = child(os.Args[2])
	case "record":
		code = record(os.Args[2])
	case "exec":
		code = execMain(os.Args[2:])
	case stageExecChild:
		code = execChild(os.Args[2:])
	default:
		usage()
	}
	os.Exit(code)
}

func usage() {
	fmt.Fprintln(os.Stderr, "usage: vk-metal-launch run|record SPEC | exec SPEC PID -- ARGS...")
	os.Exit(exitOther)
}
