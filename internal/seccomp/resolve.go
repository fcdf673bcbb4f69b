package seccomp

import (
	"fmt"
	"slices"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Host is what a profile's conditions are compared with.
type Host struct {
	// Arch is the GOARCH: amd64 or arm64.
	Arch string
	// Kernel is the kernel's version, such as 6.1; zero takes rules for every version.
	Kernel seccomp.KernelVersion
}

// HostOf is the host of an architecture with a kernel of that release (uname -r). A release
// that is not understood takes rules for every version.
func HostOf(arch, release string) Host {
	host := Host{Arch: arch}
	var v seccomp.KernelVersion
	if _, err := fmt.Sscanf(release, "%d.%d", &v.Kernel, &v.Major); err == nil {
		host.Kernel = v
	}
	return host
}

// knownArches are the names that a profile may use.
var knownArches = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
	specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
	specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64, specs.ArchLOONGARCH64,
}

// native are the architectures that we run on, by GOARCH, and whose calls each can take.
var native = map[string][]specs.Arch{
	"amd64": {specs.ArchX86_64, specs.ArchX86, specs.ArchX32},
	"arm64": {specs.ArchAARCH64, specs.ArchARM},
}

// architectures are those of the profile that this host can run, its own first. The native
// one is always filtered.
func (p *Profile) architectures(host Host) ([]specs.Arch, error) {
	all, ok := native[host.Arch]
	if !ok {
		return nil, fmt.Errorf("seccomp is not supported on %s", host.Arch)
	}
	listed := p.config.Architectures
	for _, m := range p.config.ArchMap {
		if m.Arch == all[0] {
			listed = append([]specs.Arch{m.Arch}, m.SubArches...)
			break
		}
	}
	arches := all[:1:1]
	for _, arch := range all[1:] {
		if slices.Contains(listed, arch) {
			arches = append(arches, arch)
		}
	}
	return arches, nil
}

// applies says whether a rule holds for a container with these capabilities on the host.
func applies(call *seccomp.Syscall, caps []string, host Host) bool {
	return !excluded(call.Excludes, caps, host) && included(call.Includes, caps, host)
}

func excluded(f *seccomp.Filter, caps []string, host Host) bool {
	if f == nil {
		return false
	}
	return slices.Contains(f.Arches, host.Arch) ||
		slices.ContainsFunc(f.Caps, func(c string) bool { return slices.Contains(caps, c) }) ||
		f.MinKernel != nil && host.atLeast(*f.MinKernel)
}

func included(f *seccomp.Filter, caps []string, host Host) bool {
	if f == nil {
		return true
	}
	for _, c := range f.Caps {
		if !slices.Contains(caps, c) {
			return false
		}
	}
	return (len(f.Arches) == 0 || slices.Contains(f.Arches, host.Arch)) && (f.MinKernel == nil || host.atLeast(*f.MinKernel))
}

func (h Host) atLeast(v seccomp.KernelVersion) bool {
	k := h.Kernel
	return k == (seccomp.KernelVersion{}) || k.Kernel > v.Kernel || k.Kernel == v.Kernel && k.Major >= v.Major
}

// condition is one comparison of an argument (64 bits).
type condition struct {
	arg   uint
	op    specs.LinuxSeccompOperator
	value uint64
	// masked is what the argument has to be under value as a mask (OpMaskedEqual).
	masked uint64
}

// operators are the comparisons, as a function of the argument.
var operators = map[specs.LinuxSeccompOperator]func(arg uint64, c condition) bool{
	specs.OpEqualTo:      func(arg uint64, c condition) bool { return arg == c.value },
	specs.OpNotEqual:     func(arg uint64, c condition) bool { return arg != c.value },
	specs.OpLessThan:     func(arg uint64, c condition) bool { return arg < c.value },
	specs.OpLessEqual:    func(arg uint64, c condition) bool { return arg <= c.value },
	specs.OpGreaterThan:  func(arg uint64, c condition) bool { return arg > c.value },
	specs.OpGreaterEqual: func(arg uint64, c condition) bool { return arg >= c.value },
	specs.OpMaskedEqual:  func(arg uint64, c condition) bool { return arg&c.value == c.masked },
}

// clause is a verdict for a call all of whose conditions hold.
type clause struct {
	conditions []condition
	verdict    uint32
}

// policy is a profile resolved for one architecture: the first clause of a call that holds
// decides, otherwise the default, and for calls newer than the profile knows ENOSYS.
type policy struct {
	arch    specs.Arch
	clauses map[uint32][]clause
	base    uint32 // the default verdict
	// last is the highest number that the profile speaks of. Programs ask for newer calls by
	// trying them; EPERM would make them fail where ENOSYS makes them fall back. As runc does.
	last  uint32
	newer uint32 // the verdict beyond last
}

// verdict says what the policy answers.
func (p *policy) verdict(nr uint32, args [6]uint64) uint32 {
	for _, c := range p.clauses[nr] {
		if holds(c.conditions, args) {
			return c.verdict
		}
	}
	if nr > p.last && nr != ^uint32(0) {
		return p.newer
	}
	return p.base
}

func holds(conditions []condition, args [6]uint64) bool {
	for _, c := range conditions {
		if !operators[c.op](args[c.arg], c) {
			return false
		}
	}
	return true
}

// policyFor resolves the profile for one architecture.
func (p *Profile) policyFor(arch specs.Arch, caps []string, host Host) (*policy, error) {
	base, err := verdictOf(p.config.DefaultAction, p.config.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	out := &policy{arch: arch, clauses: map[uint32][]clause{}, base: base, newer: base}
	for _, call := range p.config.Syscalls {
		if !applies(call, caps, host) {
			continue
		}
		verdict, err := verdictOf(call.Action, call.ErrnoRet)
		if err != nil {
			return nil, err
		}
		for _, name := range call.Names {
			if nr, ok := syscallNumbers()[arch][name]; ok {
				out.add(nr, call.Args, verdict)
			}
		}
	}
	if base != verdictAllow && base != verdictLog && base != verdictTrace|errnoEPERM && len(out.clauses) > 0 {
		out.newer = verdictErrno | errnoENOSYS
	}
	return out, nil
}

// add appends what a rule says of one call. A rule without conditions beats those with
// them; several conditions on one argument are alternatives (runc's reading of the
// specification, which docker's profiles rely on), on different ones they must all hold.
func (p *policy) add(nr uint32, args []specs.LinuxSeccompArg, verdict uint32) {
	if nr < 0xf0000 || nr >= x32Bit { // ARM's private calls are no measure of what is new
		p.last = max(p.last, nr)
	}
	if have := p.clauses[nr]; len(have) > 0 && len(have[len(have)-1].conditions) == 0 {
		if len(args) == 0 {
			p.clauses[nr] = []clause{{nil, verdict}}
		}
		return
	}
	if len(args) == 0 {
		p.clauses[nr] = []clause{{nil, verdict}}
		return
	}
	conditions := make([]condition, len(args))
	seen, repeated := map[uint]bool{}, false
	for i, arg := range args {
		conditions[i] = p.condition(arg)
		repeated = repeated || seen[arg.Index]
		seen[arg.Index] = true
	}
	if !repeated {
		p.clauses[nr] = append(p.clauses[nr], clause{conditions, verdict})
		return
	}
	for _, c := range conditions {
		p.clauses[nr] = append(p.clauses[nr], clause{[]condition{c}, verdict})
	}
}

// condition narrows values to what a 32-bit architecture can pass.
func (p *policy) condition(arg specs.LinuxSeccompArg) condition {
	c := condition{arg.Index, arg.Op, arg.Value, arg.ValueTwo}
	if p.arch == specs.ArchX86 || p.arch == specs.ArchARM {
		c.value &= 0xffffffff
		c.masked &= 0xffffffff
	}
	return c
}
