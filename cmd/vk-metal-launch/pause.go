//go:build linux

package main

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// nobody is who a pause process runs as: the user of upstream's pause image.
var nobody = &user{UID: 65535, GID: 65535, Home: "/"}

// pause is the first process of a PID namespace that a pod's containers share. It ignores
// every signal: only the host can end it, by KILL, and orphans do not stay zombies under it,
// because the kernel reaps the children, inherited ones too, of who ignores SIGCHLD.
func pause() int {
	signal.Ignore()
	name := append([]byte(filepath.Base(launchspec.PauseProgram)), 0)
	_ = unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(&name[0])), 0, 0, 0) // for ps alone
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return exitOther
	}
	for {
		_ = unix.Pause()
	}
}

// buildPause turns the child into pause. Whoever may trace it finds nothing in it: no
// capability, no file, no root but an empty directory, no environment.
func buildPause(spec *launchspec.Spec, scratch string, ch channel) error {
	self, err := unix.Open("/proc/self/exe", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open launcher: %w", err)
	}
	if err := nullStdio(); err != nil {
		return err
	}
	if err := emptyRoot(scratch); err != nil {
		return err
	}
	if err := ch.send(childMessage{Process: nobody.process()}); err != nil {
		return errLauncherGone
	}
	if err := ch.wait(); err != nil {
		return errLauncherGone
	}
	if err := setUser(nobody); err != nil {
		return err
	}
	if err := restrict(&launchspec.Spec{NoNewPrivileges: true}); err != nil {
		return err
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return fmt.Errorf("clear signal mask: %w", err)
	}
	if err := loadSeccomp(spec.SeccompBPF, spec.SeccompFlags); err != nil {
		return err
	}
	return fmt.Errorf("become pause process: %w", execFD(self, []string{launchspec.PauseProgram}, []string{"GOMAXPROCS=1", "GOGC=off"}))
}

func nullStdio() error {
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open /dev/null: %w", err)
	}
	defer unix.Close(null)
	for fd := range 3 {
		if err := unix.Dup3(null, fd, 0); err != nil {
			return fmt.Errorf("install stream %d: %w", fd, err)
		}
	}
	return nil
}

// emptyRoot pivots into an empty read-only directory.
func emptyRoot(scratch string) error {
	if err := unix.Mount("", "/", "", unix.MS_SLAVE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("detach mounts from the host: %w", err)
	}
	if err := unix.Mount("tmpfs", scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_RDONLY, "mode=0555,size=4k,nr_inodes=2"); err != nil {
		return fmt.Errorf("mount empty root on %s: %w", scratch, err)
	}
	fd, err := unix.Open(scratch, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open empty root: %w", err)
	}
	defer unix.Close(fd)
	return pivot(fd)
}

// execFD is fexecve(3); it returns only an error.
func execFD(fd int, argv, env []string) error {
	args, err := syscall.SlicePtrFromStrings(argv)
	if err != nil {
		return err
	}
	vars, err := syscall.SlicePtrFromStrings(env)
	if err != nil {
		return err
	}
	empty, err := syscall.BytePtrFromString("")
	if err != nil {
		return err
	}
	_, _, errno := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(empty)),
		uintptr(unsafe.Pointer(&args[0])), uintptr(unsafe.Pointer(&vars[0])), unix.AT_EMPTY_PATH, 0)
	runtime.KeepAlive(args)
	runtime.KeepAlive(vars)
	return os.NewSyscallError("execveat", errno)
}
