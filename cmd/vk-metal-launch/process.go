//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// become turns this thread into the workload, confined by an AppArmor profile or an SELinux
// label if there is one. It returns only an error.
func become(spec *launchspec.Spec, u *user, lsm securityFiles, dieWithParent bool) error {
	env := withHome(spec.Env, u.Home)
	if spec.TTY {
		env = withTerm(env)
	}
	if err := setRlimits(spec.Rlimits); err != nil {
		return err
	}
	if err := joinLabelledKeyring(lsm.keyCreate, spec.SELinux); err != nil {
		return err
	}
	early := enterWorkDir(spec.Dir) // may need the user's rights, or root's
	if err := setUser(u); err != nil {
		return err
	}
	if early != nil {
		if err := enterWorkDir(spec.Dir); err != nil {
			return err
		}
	}
	if err := confine(lsm.appArmor, spec.AppArmor); err != nil {
		return err
	}
	if err := relabel(lsm.exec, spec.SELinux); err != nil {
		return err
	}
	if err := restrict(spec); err != nil {
		return err
	}
	if dieWithParent {
		if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
			return fmt.Errorf("tie process to its parent: %w", err)
		}
	}
	args := stringsOf(spec.Args)
	program, err := lookPath(args[0], pathOf(env))
	if err != nil {
		return err
	}
	umask := 0o022
	if spec.Umask != nil {
		umask = int(*spec.Umask)
	}
	unix.Umask(umask)
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return fmt.Errorf("clear signal mask: %w", err)
	}
	if err := loadSeccomp(spec.SeccompBPF, spec.SeccompFlags); err != nil {
		return err
	}
	return execError(args[0], syscall.Exec(program, args, stringsOf(env)))
}

// withHome adds HOME where it is missing or empty, as container runtimes do.
func withHome(env [][]byte, home string) [][]byte {
	out := make([][]byte, 0, len(env)+1)
	for _, entry := range env {
		if value, ok := bytes.CutPrefix(entry, []byte("HOME=")); ok {
			if len(value) > 0 {
				return env
			}
			continue
		}
		out = append(out, entry)
	}
	return append(out, []byte("HOME="+home))
}

// withTerm adds TERM=xterm where there is a terminal and no TERM, as containerd does.
func withTerm(env [][]byte) [][]byte {
	for _, entry := range env {
		if bytes.HasPrefix(entry, []byte("TERM=")) {
			return env
		}
	}
	return append(env[:len(env):len(env)], []byte("TERM=xterm"))
}

// makeWorkDir makes the working directory before the root becomes read-only.
func makeWorkDir(root rootDir, spec *launchspec.Spec) error {
	if spec.Dir == "" {
		return nil
	}
	fd, err := root.mkdirAll(spec.Dir)
	if err != nil {
		return fmt.Errorf("make working directory %q: %w", spec.Dir, err)
	}
	return unix.Close(fd)
}

// enterWorkDir never goes through a magic link such as /proc/self/fd/7, which could lead
// out of the container (CVE-2024-21626).
func enterWorkDir(dir string) error {
	if dir == "" {
		dir = "/"
	}
	fd, err := openat2(unix.AT_FDCWD, dir, unix.OpenHow{
		Flags: unix.O_PATH | unix.O_DIRECTORY, Resolve: unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return fmt.Errorf("chdir to cwd (%q) failed: %w", dir, err)
	}
	defer unix.Close(fd)
	if err := unix.Fchdir(fd); err != nil {
		return fmt.Errorf("chdir to cwd (%q) failed: %w", dir, err)
	}
	return nil
}

// setUser changes this thread's identity and keeps its permitted capabilities for the
// steps that follow.
func setUser(u *user) error {
	groups := append([]uint32{}, u.Groups...)
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		return fmt.Errorf("set supplementary groups %v: %w", groups, errno)
	}
	runtime.KeepAlive(groups)
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	id := uintptr(u.GID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, id, id, id); errno != 0 {
		return fmt.Errorf("set group %d: %w", u.GID, errno)
	}
	id = uintptr(u.UID)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, id, id, id); errno != 0 {
		return fmt.Errorf("set user %d: %w", u.UID, errno)
	}
	return nil
}

func pathOf(env [][]byte) string {
	for _, entry := range env {
		if value, ok := bytes.CutPrefix(entry, []byte("PATH=")); ok {
			return string(value)
		}
	}
	return "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
}

// lookPath finds the program as execvp(3) would, with the messages of Go's os/exec, which
// users of containerd know.
func lookPath(name, path string) (string, error) {
	if strings.Contains(name, "/") {
		if err := executable(name); err != nil {
			return "", execError(name, err)
		}
		return name, nil
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := filepath.Join(dir, name)
		switch err := executable(file); {
		case err == nil:
			return file, nil
		case errors.Is(err, fs.ErrPermission):
			denied = err
		}
	}
	if denied != nil {
		return "", execError(name, denied)
	}
	return "", &startError{fmt.Errorf("exec: %q: executable file not found in $PATH", name), exitNotFound}
}

func executable(file string) error {
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		return &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return fmt.Errorf("is a directory: %w", fs.ErrPermission)
	}
	if err := unix.Faccessat(unix.AT_FDCWD, file, unix.X_OK, unix.AT_EACCESS); err != nil {
		return fs.ErrPermission
	}
	return nil
}

func execError(name string, err error) error {
	code := exitOther
	switch {
	case errors.Is(err, fs.ErrNotExist):
		code = exitNotFound
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.ENOEXEC):
		code = exitNotExecutable
	}
	return &startError{fmt.Errorf("exec: %q: %w", name, err), code}
}
