package seccomp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// MaxProfile bounds a profile's file in bytes.
const MaxProfile = 1 << 20

// Profile is a checked profile that has not been resolved for a container yet.
type Profile struct{ config *seccomp.Seccomp }

// Default is the runtime's default profile: what moby and containerd publish.
var Default = sync.OnceValue(func() *Profile { return &Profile{seccomp.DefaultProfile()} })

// Parse reads a profile in JSON. Names of system calls that this machine does not know are no
// mistake: profiles are written for many architectures and kernels.
func Parse(data []byte) (*Profile, error) {
	if len(data) > MaxProfile {
		return nil, fmt.Errorf("it has more than %d bytes", MaxProfile)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	config := new(seccomp.Seccomp)
	if err := decoder.Decode(config); err != nil {
		return nil, fmt.Errorf("decode JSON: %w", err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode JSON: there is more behind the profile")
	}
	if err := check(config); err != nil {
		return nil, err
	}
	return &Profile{config}, nil
}

func check(config *seccomp.Seccomp) error {
	if config.DefaultAction == "" {
		return errors.New("defaultAction is missing")
	}
	if _, err := verdictOf(config.DefaultAction, config.DefaultErrnoRet); err != nil {
		return fmt.Errorf("defaultAction: %w", err)
	}
	if len(config.Architectures) > 0 && len(config.ArchMap) > 0 {
		return errors.New("architectures and archMap exclude each other: keep one")
	}
	if config.ListenerPath != "" || config.ListenerMetadata != "" {
		return errors.New("listenerPath is not supported: there is nobody to notify")
	}
	for _, arch := range config.Architectures {
		if !slices.Contains(knownArches, arch) {
			return fmt.Errorf("architectures: %q is not an architecture", arch)
		}
	}
	for i, flag := range config.Flags {
		if _, ok := flagBits[flag]; !ok {
			return fmt.Errorf("flags[%d]: %q is not supported", i, flag)
		}
	}
	for i, call := range config.Syscalls {
		if err := checkRule(call); err != nil {
			return fmt.Errorf("syscalls[%d]: %w", i, err)
		}
	}
	return nil
}

func checkRule(call *seccomp.Syscall) error {
	if call == nil {
		return errors.New("it is null")
	}
	if name := call.Name; name != "" { //nolint:staticcheck // deprecated, and in profiles all the same
		if len(call.Names) > 0 {
			return errors.New("name and names exclude each other: keep names")
		}
		call.Names = []string{name}
	}
	if len(call.Names) == 0 || slices.Contains(call.Names, "") {
		return errors.New("names is missing, or has an empty one")
	}
	if _, err := verdictOf(call.Action, call.ErrnoRet); err != nil {
		return fmt.Errorf("%s: action: %w", call.Names[0], err)
	}
	for i, arg := range call.Args {
		if _, ok := operators[arg.Op]; !ok {
			return fmt.Errorf("%s: args[%d].op: %q is not an operator", call.Names[0], i, arg.Op)
		}
		if arg.Index > 5 {
			return fmt.Errorf("%s: args[%d].index: %d is more than 5", call.Names[0], i, arg.Index)
		}
	}
	return nil
}

// Verdicts of the kernel (linux/seccomp.h).
const (
	verdictKillProcess = 0x80000000
	verdictKillThread  = 0x00000000
	verdictTrap        = 0x00030000
	verdictErrno       = 0x00050000
	verdictTrace       = 0x7ff00000
	verdictLog         = 0x7ffc0000
	verdictAllow       = 0x7fff0000

	errnoEPERM, errnoENOSYS = 1, 38
	maxErrno                = 4095
)

// verdictOf is an action as the kernel takes it.
func verdictOf(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	number := uint32(errnoEPERM)
	if errno != nil {
		if *errno > maxErrno {
			return 0, fmt.Errorf("errnoRet %d is not an error number", *errno)
		}
		number = uint32(*errno)
	}
	switch action {
	case specs.ActAllow:
		return verdictAllow, nil
	case specs.ActErrno:
		return verdictErrno | number, nil
	case specs.ActTrace:
		return verdictTrace | number, nil
	case specs.ActLog:
		return verdictLog, nil
	case specs.ActTrap:
		return verdictTrap, nil
	case specs.ActKill, specs.ActKillThread:
		return verdictKillThread, nil
	case specs.ActKillProcess:
		return verdictKillProcess, nil
	case specs.ActNotify:
		return 0, errors.New("SCMP_ACT_NOTIFY is not supported: there is nobody to notify")
	}
	return 0, fmt.Errorf("%q is not an action", action)
}

// flagBits are SECCOMP_FILTER_FLAG_*. TSYNC means nothing for a process of one thread.
var flagBits = map[specs.LinuxSeccompFlag]uint32{
	"SECCOMP_FILTER_FLAG_TSYNC": 0, specs.LinuxSeccompFlagLog: 2, specs.LinuxSeccompFlagSpecAllow: 4,
}

// Flags are what the program has to be loaded with (SECCOMP_FILTER_FLAG_*). Without any in
// the profile speculation is not mitigated, as runc and the kernel have it since 5.16.
func (p *Profile) Flags() uint32 {
	if p.config.Flags == nil {
		return flagBits[specs.LinuxSeccompFlagSpecAllow]
	}
	var bits uint32
	for _, flag := range p.config.Flags {
		bits |= flagBits[flag]
	}
	return bits
}
