package seccomp

import (
	_ "embed"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

//go:embed syscalls.txt
var syscallTable string

// numbers maps the name of a system call to its number on one architecture.
type numbers map[string]uint32

// columns are those of syscalls.txt.
var columns = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchAARCH64, specs.ArchARM}

// x32Bit marks the calls of x32, which has the audit architecture of x86-64.
const x32Bit = 0x40000000

// x32Own are the calls that have a number of their own on x32, from 512 on (linux/unistd_x32.h).
const x32Own = "rt_sigaction rt_sigreturn ioctl readv writev recvfrom sendmsg recvmsg execve ptrace rt_sigpending " +
	"rt_sigtimedwait rt_sigqueueinfo sigaltstack timer_create mq_notify kexec_load waitid set_robust_list " +
	"get_robust_list vmsplice move_pages preadv pwritev rt_tgsigqueueinfo recvmmsg sendmmsg process_vm_readv " +
	"process_vm_writev setsockopt getsockopt io_setup io_submit execveat preadv2 pwritev2"

// armPrivate are ARM's own calls (asm/unistd.h, __ARM_NR_BASE).
var armPrivate = numbers{"breakpoint": 0xf0001, "cacheflush": 0xf0002, "usr26": 0xf0003, "usr32": 0xf0004, "set_tls": 0xf0005}

var syscallNumbers = sync.OnceValue(func() map[specs.Arch]numbers {
	tables := map[specs.Arch]numbers{specs.ArchX32: {}}
	for _, arch := range columns {
		tables[arch] = numbers{}
	}
	for line := range strings.Lines(syscallTable) {
		fields := strings.Fields(line)
		if len(fields) != len(columns)+1 {
			continue // the first line
		}
		for i, arch := range columns {
			if n, err := strconv.ParseUint(fields[i+1], 10, 32); err == nil {
				tables[arch][fields[0]] = uint32(n)
			}
		}
	}
	for name, n := range tables[specs.ArchX86_64] {
		tables[specs.ArchX32][name] = x32Bit | n
	}
	for i, name := range strings.Fields(x32Own) {
		tables[specs.ArchX32][name] = x32Bit | uint32(512+i)
	}
	for name, n := range armPrivate {
		tables[specs.ArchARM][name] = n
	}
	return tables
})
