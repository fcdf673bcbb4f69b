//go:build linux

package main

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// capabilities maps names to bits (linux/capability.h).
var capabilities = map[string]uint{
	"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_DAC_READ_SEARCH": 2, "CAP_FOWNER": 3, "CAP_FSETID": 4,
	"CAP_KILL": 5, "CAP_SETGID": 6, "CAP_SETUID": 7, "CAP_SETPCAP": 8, "CAP_LINUX_IMMUTABLE": 9,
	"CAP_NET_BIND_SERVICE": 10, "CAP_NET_BROADCAST": 11, "CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13,
	"CAP_IPC_LOCK": 14, "CAP_IPC_OWNER": 15, "CAP_SYS_MODULE": 16, "CAP_SYS_RAWIO": 17,
	"CAP_SYS_CHROOT": 18, "CAP_SYS_PTRACE": 19, "CAP_SYS_PACCT": 20, "CAP_SYS_ADMIN": 21,
	"CAP_SYS_BOOT": 22, "CAP_SYS_NICE": 23, "CAP_SYS_RESOURCE": 24, "CAP_SYS_TIME": 25,
	"CAP_SYS_TTY_CONFIG": 26, "CAP_MKNOD": 27, "CAP_LEASE": 28, "CAP_AUDIT_WRITE": 29,
	"CAP_AUDIT_CONTROL": 30, "CAP_SETFCAP": 31, "CAP_MAC_OVERRIDE": 32, "CAP_MAC_ADMIN": 33,
	"CAP_SYSLOG": 34, "CAP_WAKE_ALARM": 35, "CAP_BLOCK_SUSPEND": 36, "CAP_AUDIT_READ": 37,
	"CAP_PERFMON": 38, "CAP_BPF": 39, "CAP_CHECKPOINT_RESTORE": 40,
}

// capMask is the set that the container keeps, as bits.
func capMask(spec *launchspec.Spec) (uint64, error) {
	if spec.Privileged && len(spec.Capabilities) == 0 {
		return ^uint64(0), nil
	}
	var mask uint64
	for _, name := range spec.Capabilities {
		bit, ok := capabilities[name]
		if !ok {
			return 0, fmt.Errorf("unknown capability %q", name)
		}
		mask |= 1 << bit
	}
	return mask, nil
}

// restrict drops what the container must not have, except for the seccomp filter, which is
// loaded last: a profile need not know the calls that are made here. Loading it without
// no_new_privs needs CAP_SYS_ADMIN, which stays until then. execve takes it away: it
// computes the capabilities anew, from the bounding set for root, none for others.
func restrict(spec *launchspec.Spec) error {
	mask, err := capMask(spec)
	if err != nil {
		return err
	}
	if err := raiseEffective(); err != nil {
		return err
	}
	if err := dropBounding(mask); err != nil {
		return err
	}
	if len(spec.SeccompBPF) > 0 && !spec.NoNewPrivileges {
		mask |= 1 << unix.CAP_SYS_ADMIN
	}
	if err := limitCaps(mask); err != nil {
		return err
	}
	if !spec.NoNewPrivileges {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	return nil
}

type capSets [2]unix.CapUserData

func getCaps() (capSets, error) {
	var sets capSets
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return sets, fmt.Errorf("read capabilities: %w", err)
	}
	return sets, nil
}

func (sets *capSets) set() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}

// raiseEffective takes back what the change of user cleared.
func raiseEffective() error {
	sets, err := getCaps()
	if err != nil {
		return err
	}
	for i := range sets {
		sets[i].Effective = sets[i].Permitted
	}
	return sets.set()
}

// limitCaps leaves permitted and effective the mask, as far as the host itself has it.
// Inheritable and ambient stay empty (CVE-2022-24769): execve computes the rest from the
// bounding set for root and drops everything for others, as under a container runtime.
func limitCaps(mask uint64) error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clear ambient capabilities: %w", err)
	}
	sets, err := getCaps()
	if err != nil {
		return err
	}
	for i := range sets {
		keep := sets[i].Permitted & uint32(mask>>(32*i))
		sets[i] = unix.CapUserData{Permitted: keep, Effective: keep}
	}
	return sets.set()
}

func dropBounding(mask uint64) error {
	for bit := uintptr(0); bit < 64; bit++ {
		if mask&(1<<bit) != 0 {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, bit, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // past the kernel's last capability
		}
		if err != nil {
			return fmt.Errorf("drop capability %d from the bounding set: %w", bit, err)
		}
	}
	return nil
}

// loadSeccomp installs a compiled filter on this thread, which is the one that execs.
func loadSeccomp(program []byte, flags uint32) error {
	if len(program) == 0 {
		return nil
	}
	const size = int(unsafe.Sizeof(unix.SockFilter{}))
	if len(program)%size != 0 || len(program)/size > unix.BPF_MAXINSNS {
		return fmt.Errorf("seccomp program of %d bytes is malformed", len(program))
	}
	filters := make([]unix.SockFilter, len(program)/size)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&filters[0])), len(program)), program)
	prog := unix.SockFprog{Len: uint16(len(filters)), Filter: &filters[0]}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(flags), uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filters)
	if errno != 0 {
		return fmt.Errorf("load seccomp filter: %w", errno)
	}
	return nil
}
