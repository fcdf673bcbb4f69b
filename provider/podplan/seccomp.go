package podplan

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"
)

// The default seccomp profile refuses (EPERM) the system calls that containerd's default
// profile refuses to a process without the capability named (contrib/seccomp,
// "DefaultProfile"); the ones under "" are refused to everybody. Calls of another
// architecture end the process.
var refusedWithout = map[string][]uint32{
	"": {
		unix.SYS_ADD_KEY, unix.SYS_KEYCTL, unix.SYS_REQUEST_KEY, unix.SYS_USERFAULTFD, unix.SYS_NFSSERVCTL,
		unix.SYS_MOVE_PAGES, unix.SYS_SWAPON, unix.SYS_SWAPOFF, unix.SYS_KEXEC_LOAD, unix.SYS_IO_URING_SETUP,
		unix.SYS_IO_URING_ENTER, unix.SYS_IO_URING_REGISTER,
	},
	"CAP_SYS_ADMIN": {
		unix.SYS_MOUNT, unix.SYS_UMOUNT2, unix.SYS_PIVOT_ROOT, unix.SYS_SETNS, unix.SYS_UNSHARE, unix.SYS_FSOPEN,
		unix.SYS_FSMOUNT, unix.SYS_FSCONFIG, unix.SYS_FSPICK, unix.SYS_MOVE_MOUNT, unix.SYS_OPEN_TREE,
		unix.SYS_MOUNT_SETATTR, unix.SYS_FANOTIFY_INIT, unix.SYS_LOOKUP_DCOOKIE, unix.SYS_QUOTACTL,
		unix.SYS_QUOTACTL_FD, unix.SYS_SETDOMAINNAME, unix.SYS_SETHOSTNAME,
	},
	"CAP_BPF":             {unix.SYS_BPF},
	"CAP_PERFMON":         {unix.SYS_PERF_EVENT_OPEN},
	"CAP_DAC_READ_SEARCH": {unix.SYS_OPEN_BY_HANDLE_AT},
	"CAP_SYS_BOOT":        {unix.SYS_REBOOT, unix.SYS_KEXEC_FILE_LOAD},
	"CAP_SYS_MODULE":      {unix.SYS_INIT_MODULE, unix.SYS_FINIT_MODULE, unix.SYS_DELETE_MODULE},
	"CAP_SYS_PACCT":       {unix.SYS_ACCT},
	"CAP_SYS_TIME":        {unix.SYS_SETTIMEOFDAY, unix.SYS_CLOCK_SETTIME},
	"CAP_SYS_TTY_CONFIG":  {unix.SYS_VHANGUP},
	"CAP_SYSLOG":          {unix.SYS_SYSLOG},
	"CAP_SYS_NICE":        {unix.SYS_MBIND, unix.SYS_SET_MEMPOLICY, unix.SYS_MIGRATE_PAGES},
}

// Offsets in struct seccomp_data, and verdicts (linux/seccomp.h).
const (
	dataNr, dataArch, dataArg0 = 0, 4, 16
	verdictAllow               = 0x7fff0000
	verdictKill                = 0x80000000
	verdictEPERM               = 0x00050000 | uint32(unix.EPERM)
	verdictENOSYS              = 0x00050000 | uint32(unix.ENOSYS)
	newNamespaces              = 0x7E020000 // CLONE_NEW{NS,CGROUP,UTS,IPC,USER,PID,NET}
)

// DefaultSeccomp compiles the profile for a process that keeps these capabilities.
func DefaultSeccomp(capabilities []string) []byte {
	p := program{}
	p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, dataArch)
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 1, 0, auditArch)
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdictKill)
	p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, dataNr)
	// x32 calls carry bit 30 under the architecture of x86-64.
	p.add(unix.BPF_JMP|unix.BPF_JGE|unix.BPF_K, 0, 1, 0x40000000)
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdictKill)
	var refused []uint32
	for capability, calls := range refusedWithout {
		if capability == "" || !slices.Contains(capabilities, capability) {
			refused = append(refused, calls...)
		}
	}
	slices.Sort(refused)
	for _, nr := range refused {
		p.refuse(nr, verdictEPERM)
	}
	if !slices.Contains(capabilities, "CAP_SYS_ADMIN") {
		p.refuse(unix.SYS_CLONE3, verdictENOSYS) // libc falls back to clone, whose flags can be seen
		p.refuseClone()
	}
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdictAllow)
	return p.bytes
}

// program is an array of struct sock_filter in the host's byte order.
type program struct{ bytes []byte }

func (p *program) add(code uint16, jt, jf uint8, k uint32) {
	p.bytes = binary.NativeEndian.AppendUint16(p.bytes, code)
	p.bytes = append(p.bytes, jt, jf)
	p.bytes = binary.NativeEndian.AppendUint32(p.bytes, k)
}

func (p *program) refuse(nr, verdict uint32) {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 1, nr)
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdict)
}

// refuseClone refuses clone with any CLONE_NEW flag (its first argument here).
func (p *program) refuseClone() {
	p.add(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K, 0, 4, unix.SYS_CLONE)
	p.add(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, 0, 0, dataArg0)
	p.add(unix.BPF_JMP|unix.BPF_JSET|unix.BPF_K, 0, 1, newNamespaces)
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdictEPERM)
	p.add(unix.BPF_RET|unix.BPF_K, 0, 0, verdictAllow)
}
