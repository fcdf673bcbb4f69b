//go:build linux

package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A user namespace is joined by a process of one thread only (setns(2)), which a Go program
// never is. So the second stage is born in it: a copy of this process, which has one thread
// until its execve, enters the namespace and clones the child there. Between fork and execve
// nothing but system calls is allowed: no allocation, no growth of the stack, no pointer
// written, which is what nosplit and the plain numbers of birth see to.

// birth is what the two processes need, made ready before the first is forked.
type birth struct {
	joins  [2]join
	report int // a pipe: what went wrong, or the child's PID

	parent uintptr // flags of the first clone: CLONE_PARENT or none
	flags  uintptr // of the second one
	fds    [3]int  // become 3, 4 and 5 of the child; -1 for none
	self   int     // the program, from readonlySelf
	argv   *[4]*byte
	envv   *[3]*byte
	empty  *byte

	mask uint64 // the signal mask to be put back
	note [2]int32
}

// join is one setns(2).
type join struct {
	fd    int
	kinds uintptr
}

// The steps that can fail, as birth.note[0] says them; born is none, with a PID.
const (
	born int32 = iota
	stepJoin
	stepClone
	stepIdentity
	stepDescriptors
	stepExec
)

var stepNames = map[int32]string{
	stepJoin: "join user namespace", stepClone: "clone container process", stepIdentity: "become root of the user namespace",
	stepDescriptors: "install descriptors", stepExec: "execute launcher",
}

// bear forks the child that b describes with the arguments stage and arg and returns its PID.
func (b *birth) bear(stage, arg string) (int, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC); err != nil {
		return 0, fmt.Errorf("make pipe: %w", err)
	}
	result := os.NewFile(uintptr(pipe[0]), "birth")
	defer result.Close()
	b.report = pipe[1]
	b.argv = &[4]*byte{cString("vk-metal-launch"), cString(stage), cString(arg), nil}
	b.envv = &[3]*byte{cString("GOMAXPROCS=1"), cString("GOGC=off"), nil}
	b.empty = cString("")
	errno := b.fork()
	unix.Close(pipe[1])
	if errno != 0 {
		return 0, fmt.Errorf("fork: %w", errno)
	}
	return readNotes(result)
}

func cString(s string) *byte {
	p, err := syscall.BytePtrFromString(s)
	if err != nil {
		panic(err) // a constant of ours with a NUL
	}
	return p
}

// readNotes reads what both processes had to say, until the child has become the launcher.
func readNotes(result io.Reader) (int, error) {
	pid := 0
	for {
		var note [2]int32
		err := binary.Read(result, binary.NativeEndian, &note)
		switch {
		case errors.Is(err, io.EOF) && pid > 0:
			return pid, nil
		case err != nil:
			return 0, fmt.Errorf("clone container process: %w", err)
		case note[0] != born:
			return 0, fmt.Errorf("%s: %w", stepNames[note[0]], syscall.Errno(note[1]))
		}
		pid = int(note[1])
	}
}

// fork makes the process that enters the namespaces. No signal handler may run in it.
//
//go:noinline
//go:nosplit
//go:norace
func (b *birth) fork() syscall.Errno {
	all := ^uint64(0)
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&b.mask)), 8, 0, 0)
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, b.parent|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno == 0 && pid == 0 {
		b.enter()
	}
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&b.mask)), 0, 8, 0, 0)
	return errno
}

// enter joins the namespaces, clones the child, and ends.
//
//go:noinline
//go:nosplit
//go:norace
func (b *birth) enter() {
	for i := range b.joins {
		if b.joins[i].fd < 0 {
			continue
		}
		if _, _, errno := syscall.RawSyscall6(unix.SYS_SETNS, uintptr(b.joins[i].fd), b.joins[i].kinds, 0, 0, 0, 0); errno != 0 {
			b.end(stepJoin, errno)
		}
	}
	pid, _, errno := syscall.RawSyscall6(unix.SYS_CLONE, b.flags|unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	switch {
	case errno != 0:
		b.end(stepClone, errno)
	case pid == 0:
		b.live()
	}
	b.end(born, syscall.Errno(pid))
}

// live takes on the identity of the namespace's root and becomes the launcher's second stage.
//
//go:noinline
//go:nosplit
//go:norace
func (b *birth) live() {
	for _, call := range [3]uintptr{unix.SYS_SETGROUPS, unix.SYS_SETRESGID, unix.SYS_SETRESUID} {
		if _, _, errno := syscall.RawSyscall6(call, 0, 0, 0, 0, 0, 0); errno != 0 {
			b.end(stepIdentity, errno)
		}
	}
	for i := range b.fds {
		if b.fds[i] < 0 {
			continue
		}
		if _, _, errno := syscall.RawSyscall6(unix.SYS_DUP3, uintptr(b.fds[i]), uintptr(childFD+i), 0, 0, 0, 0); errno != 0 {
			b.end(stepDescriptors, errno)
		}
	}
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&b.mask)), 0, 8, 0, 0)
	_, _, errno := syscall.RawSyscall6(unix.SYS_EXECVEAT, uintptr(b.self), uintptr(unsafe.Pointer(b.empty)),
		uintptr(unsafe.Pointer(b.argv)), uintptr(unsafe.Pointer(b.envv)), unix.AT_EMPTY_PATH, 0)
	b.end(stepExec, errno)
}

// end says what has become of this process and ends it.
//
//go:noinline
//go:nosplit
//go:norace
func (b *birth) end(step int32, value syscall.Errno) {
	b.note[0], b.note[1] = step, int32(value)
	_, _, _ = syscall.RawSyscall6(unix.SYS_WRITE, uintptr(b.report), uintptr(unsafe.Pointer(&b.note)), 8, 0, 0, 0)
	for {
		_, _, _ = syscall.RawSyscall6(unix.SYS_EXIT_GROUP, 0, 0, 0, 0, 0, 0)
	}
}
