package systemd

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// property is one (name, value) pair of a transient unit or of SetUnitProperties.
type property struct {
	Name  string
	Value dbus.Variant
}

func prop(name string, value any) property { return property{name, dbus.MakeVariant(value)} }

// execCommand is the D-Bus type (sasb) of ExecStart and its kin. ExecStartEx, which can
// switch off the expansion of "$", must not be used: systemd 252 writes it into the unit's
// file under that name, does not know it when it reads the file back at daemon-reload, and
// forgets ExecStopPost with it.
type execCommand struct {
	Path          string
	Argv          []string
	IgnoreFailure bool
}

// Times that systemd itself keeps.
const (
	// startTimeout bounds the launcher; on an idle host it takes some milliseconds.
	startTimeout       = 2 * time.Minute
	defaultStopTimeout = 30 * time.Second
)

// logWriterUnit takes what containers write.
const logWriterUnit = "vk-metal-log.service"

// fieldPrefix starts all of our journal fields.
const fieldPrefix = "VK_METAL_"

// unitProperties is everything that systemd is told about an attempt. No string of a pod
// is ever interpreted: Arguments are our own paths, of characters that mean
// nothing to systemd; specifiers are not expanded in values set over D-Bus; control
// characters are refused.
func unitProperties(unit Unit, launcher string, version cgroupVersion) ([]property, error) {
	fields, err := identityFields(unit.Identity)
	if err != nil {
		return nil, fmt.Errorf("unit %s: %w", unit.Name, err)
	}
	if err := checkText(unit.Name, unit.Slice, unit.Description, unit.LaunchSpec); err != nil {
		return nil, fmt.Errorf("unit %s: %w", unit.Name, err)
	}
	if err := checkArguments(launcher, unit.LaunchSpec); err != nil {
		return nil, fmt.Errorf("unit %s: %w", unit.Name, err)
	}
	stop := unit.StopTimeout
	if stop <= 0 {
		stop = defaultStopTimeout
	}
	props := []property{
		prop("Description", unit.Description),
		prop("Slice", unit.Slice),
		prop("Type", "notify"),
		prop("NotifyAccess", "main"), // the launcher, until it names another
		prop("ExecStart", launcherCommand(launcher, "run", unit.LaunchSpec)),
		prop("ExecStopPost", launcherCommand(launcher, "record", unit.LaunchSpec)),
		prop("Restart", "no"),
		// The agent sends TERM to the main process; what outlives it gets KILL at once.
		prop("KillMode", "mixed"),
		prop("SendSIGKILL", true),
		prop("TimeoutStartUSec", usec(startTimeout)),
		prop("TimeoutStopUSec", usec(stop)),
		// The exit record keeps what matters: an ended unit need not stay loaded.
		prop("CollectMode", "inactive-or-failed"),
		prop("StandardInput", "null"),
		prop("StandardOutput", "null"),
		prop("StandardError", "journal"),
		prop("SyslogIdentifier", "vk-metal-launch"),
		prop("LogExtraFields", fields),
		prop("IgnoreSIGPIPE", false),
		prop("UMask", uint32(0o022)),
		// Of all processes the kernel's OOM killer takes the whole container on v2, as the
		// kubelet asks (memory.oom.group).
		prop("OOMPolicy", "kill"),
		prop("Delegate", true), // AttachProcessesToUnit needs it
		// Own groups for what a container's limits are about, and no others: on v1 every
		// hierarchy more costs a start some milliseconds (the move waits for an RCU grace period).
		prop("CPUAccounting", true),
		prop("MemoryAccounting", true),
		prop("TasksAccounting", true),
	}
	props = append(props, deviceProperties(unit)...)
	props = append(props, strictProperties(unit)...)
	props = append(props, containerDefaults(unit.Resources, version)...)
	props = append(props, resourceProperties(unit.Resources, version)...)
	// At shutdown the log writer stops last, when all has been written.
	after := append([]string{logWriterUnit}, unit.After...)
	for _, dependency := range []property{prop("After", after), prop("Wants", unit.Wants)} {
		if len(dependency.Value.Value().([]string)) > 0 {
			props = append(props, dependency)
		}
	}
	return props, nil
}

func launcherCommand(launcher, verb, spec string) []execCommand {
	return []execCommand{{Path: launcher, Argv: []string{launcher, verb, spec}}}
}

func sliceProperties(slice Slice, version cgroupVersion) []property {
	props := []property{
		prop("Description", slice.Description),
		prop("CPUAccounting", true), prop("MemoryAccounting", true), prop("TasksAccounting", true),
	}
	return append(props, resourceProperties(slice.Resources, version)...)
}

// deviceRule is the D-Bus type (ss) of DeviceAllow.
type deviceRule struct{ Path, Access string }

// defaultDevices are what a container runtime allows (OCI runtime specification, and
// runc's defaults): the standard nodes, pseudo-terminals, and mknod of anything.
var defaultDevices = []deviceRule{
	{"/dev/null", "rwm"},
	{"/dev/zero", "rwm"},
	{"/dev/full", "rwm"},
	{"/dev/random", "rwm"},
	{"/dev/urandom", "rwm"},
	{"/dev/tty", "rwm"},
	{"/dev/ptmx", "rwm"},
	{"char-pts", "rwm"},
	{"char-*", "m"},
	{"block-*", "m"},
}

func deviceProperties(unit Unit) []property {
	if unit.AllDevices {
		return []property{prop("DevicePolicy", "auto")}
	}
	rules := append([]deviceRule{}, defaultDevices...)
	for _, rule := range unit.DeviceAllow {
		rules = append(rules, deviceRule(rule))
	}
	return []property{prop("DevicePolicy", "strict"), prop("DeviceAllow", rules)}
}

// containerDefaults are limits that a kubelet's container has where the pod says nothing,
// and that systemd would decide differently.
func containerDefaults(r Resources, version cgroupVersion) []property {
	var props []property
	if r.TasksMax == nil {
		// Else it is the manager's DefaultTasksMax=, 15 % of what the kernel allows.
		props = append(props, prop("TasksMax", uint64(math.MaxUint64)))
	}
	if version == cgroupV2 && r.MemoryMax == nil {
		// The kubelet's NoSwap is for every container, not only for limited ones.
		props = append(props, prop("MemorySwapMax", uint64(0)))
	}
	return props
}

// resourceProperties leaves out what is nil.
func resourceProperties(r Resources, version cgroupVersion) []property {
	var props []property
	if r.CPUShares != nil {
		if version == cgroupV1 {
			props = append(props, prop("CPUShares", min(max(*r.CPUShares, 2), 262144)))
		} else {
			props = append(props, prop("CPUWeight", cpuWeight(*r.CPUShares)))
		}
	}
	if r.CPUQuota != nil {
		props = append(props, prop("CPUQuotaPerSecUSec", usec(*r.CPUQuota)))
	}
	if r.MemoryMax != nil {
		props = append(props, prop("MemoryMax", *r.MemoryMax))
		if version == cgroupV2 {
			props = append(props, prop("MemorySwapMax", uint64(0)))
		}
	}
	if r.TasksMax != nil {
		props = append(props, prop("TasksMax", *r.TasksMax))
	}
	return props
}

// cpuWeight converts v1 shares so that 2, 1024 and 262144 become 1, 100 and 10000, by the
// quadratic of opencontainers/cgroups 0.0.3, which kubelet 1.35 uses.
func cpuWeight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 262144:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

func usec(d time.Duration) uint64 {
	if d < 0 {
		return math.MaxUint64 // systemd's infinity
	}
	return uint64(d.Microseconds())
}

// identityFields encodes an Identity for LogExtraFields.
func identityFields(id Identity) ([][]byte, error) {
	pairs := []struct{ name, value string }{
		{"POD_UID", id.PodUID},
		{"POD_NAMESPACE", id.PodNamespace},
		{"POD_NAME", id.PodName},
		{"CONTAINER", id.Container},
		{"ATTEMPT", strconv.Itoa(id.Attempt)},
		{"SPEC_HASH", id.SpecHash},
		{"IMAGE", id.Image},
	}
	fields := make([][]byte, 0, len(pairs))
	for _, pair := range pairs {
		if err := checkText(pair.value); err != nil {
			return nil, fmt.Errorf("identity %s: %w", pair.name, err)
		}
		fields = append(fields, []byte(fieldPrefix+pair.name+"="+pair.value))
	}
	return fields, nil
}

// parseIdentity reads back what identityFields wrote; foreign fields are passed over. ok
// is false where the unit is not ours.
func parseIdentity(fields [][]byte) (id Identity, ok bool) {
	for _, field := range fields {
		name, value, _ := strings.Cut(string(field), "=")
		name, ours := strings.CutPrefix(name, fieldPrefix)
		if !ours {
			continue
		}
		switch name {
		case "POD_UID":
			id.PodUID, ok = value, value != ""
		case "POD_NAMESPACE":
			id.PodNamespace = value
		case "POD_NAME":
			id.PodName = value
		case "CONTAINER":
			id.Container = value
		case "ATTEMPT":
			id.Attempt, _ = strconv.Atoi(value)
		case "SPEC_HASH":
			id.SpecHash = value
		case "IMAGE":
			id.Image = value
		}
	}
	return id, ok
}

// checkArguments refuses paths with characters that systemd expands in a command line, or
// that 252 escapes wrongly when it writes a transient unit's file ("$" becomes "\$", which
// it does not read back). What we put there are UIDs, DNS labels and numbers.
func checkArguments(args ...string) error {
	for _, arg := range args {
		if arg == "" || strings.ContainsFunc(arg, func(r rune) bool { return !plainArgument(r) }) {
			return fmt.Errorf("path %q has a character that a command line of systemd cannot carry", arg)
		}
	}
	return nil
}

func plainArgument(r rune) bool {
	return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@=,~%", r)
}

var errControl = errors.New("contains a control character")

// checkText refuses what has no place in a unit's text: control characters (a newline
// would start another setting) and what is not UTF-8 (D-Bus would cut the connection).
func checkText(values ...string) error {
	for _, value := range values {
		if strings.ToValidUTF8(value, "") != value {
			return fmt.Errorf("%q is not UTF-8", value)
		}
		if strings.ContainsFunc(value, func(r rune) bool { return r < 0x20 || r == 0x7f }) {
			return fmt.Errorf("%q %w", value, errControl)
		}
	}
	return nil
}
