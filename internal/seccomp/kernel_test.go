//go:build linux

package seccomp

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestTheKernelObeys loads programs and makes real calls: this test's own program runs once
// more for each case, as a process of its own.
func TestTheKernelObeys(t *testing.T) {
	if name := os.Getenv("VK_METAL_SECCOMP_CASE"); name != "" {
		obey(name)
	}
	for name, test := range kernelCases {
		t.Run(name, func(t *testing.T) {
			cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestTheKernelObeys$")
			cmd.Env = append(os.Environ(), "VK_METAL_SECCOMP_CASE="+name)
			out, err := cmd.Output()
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				out = append(out, []byte(" then "+exit.String())...)
			}
			if got := strings.TrimSpace(string(out)); !strings.HasPrefix(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
}

var kernelCases = map[string]struct {
	profile string // empty for the default one
	calls   func() []error
	want    string
}{
	"default": {"", func() []error {
		return []error{
			try(unix.SYS_GETPID, 0), try(unix.SYS_SETNS, ^uintptr(0)), try(unix.SYS_UNSHARE, unix.CLONE_NEWUSER), try(unix.SYS_CLONE3, 0),
			try(unix.SYS_CLONE, unix.CLONE_NEWUSER), try(unix.SYS_PERSONALITY, 0x0040000), try(unix.SYS_PERSONALITY, 0xffffffff),
			try(unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM), try(unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET),
			try(unix.SYS_SOCKET, unix.AF_UNIX, unix.SOCK_STREAM), try(unix.SYS_KEYCTL, 0), try(unix.SYS_MOUNT, 0), try(unix.SYS_IO_URING_SETUP, 1),
			try(unix.SYS_BPF, 0), try(9999, 0),
		}
	}, "0 EPERM EPERM ENOSYS EPERM EPERM 0 EPERM EPERM 0 EPERM EPERM EPERM EPERM ENOSYS"},
	"errno": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
		{"names": ["getuid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 11},
		{"names": ["dup"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 0, "op": "SCMP_CMP_GT", "value": 4294967296}]}]}`, func() []error {
		return []error{try(unix.SYS_GETUID, 0), try(unix.SYS_DUP, 1), try(unix.SYS_DUP, 1<<33|1), try(9999, 0)}
	}, "EAGAIN 0 EPERM ENOSYS"},
	"log": {`{"defaultAction": "SCMP_ACT_LOG", "flags": ["SECCOMP_FILTER_FLAG_LOG"]}`, func() []error {
		return []error{try(unix.SYS_GETUID, 0)}
	}, "0"},
	"kill": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getuid"], "action": "SCMP_ACT_KILL_PROCESS"}]}`, func() []error {
		return []error{try(unix.SYS_GETUID, 0)}
	}, "then signal: bad system call"},
	"trap": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getuid"], "action": "SCMP_ACT_TRAP"}]}`, func() []error {
		return []error{try(unix.SYS_GETUID, 0)}
	}, "then exit status 2"}, // Go's runtime dies of SIGSYS
	"trace without a tracer": {`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["getuid"], "action": "SCMP_ACT_TRACE"}]}`, func() []error {
		return []error{try(unix.SYS_GETUID, 0)}
	}, "ENOSYS"},
}

// obey is the process of one case; it does not return.
func obey(name string) {
	runtime.LockOSThread()
	test := kernelCases[name]
	profile := Default()
	if test.profile != "" {
		var err error
		if profile, err = Parse([]byte(test.profile)); err != nil {
			fail(err)
		}
	}
	program, err := profile.Compile(nil, Host{Arch: runtime.GOARCH})
	if err != nil {
		fail(err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		fail(err)
	}
	prog := unix.SockFprog{Len: uint16(len(program) / 8), Filter: (*unix.SockFilter)(unsafe.Pointer(&program[0]))}
	if _, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(profile.Flags()), uintptr(unsafe.Pointer(&prog))); errno != 0 {
		fail(errno)
	}
	var out []string
	for _, err := range test.calls() {
		var errno syscall.Errno
		switch {
		case err == nil:
			out = append(out, "0")
		case errors.As(err, &errno):
			out = append(out, unix.ErrnoName(errno))
		}
	}
	os.Stdout.WriteString(strings.Join(out, " "))
	os.Exit(0)
}

func fail(err error) {
	os.Stdout.WriteString(err.Error())
	os.Exit(3)
}

// try makes a call that does nothing lasting and says how it ended.
func try(nr uintptr, args ...uintptr) error {
	var a [3]uintptr
	copy(a[:], args)
	if nr == unix.SYS_CLONE {
		if pid, _, errno := unix.RawSyscall6(nr, a[0]|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0); errno == 0 && pid == 0 {
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		} else if errno != 0 {
			return errno
		}
		return nil
	}
	if _, _, errno := unix.RawSyscall(nr, a[0], a[1], a[2]); errno != 0 {
		return errno
	}
	return nil
}
