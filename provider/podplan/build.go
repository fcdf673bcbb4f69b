package podplan

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/systemd"
)

// Launch is how one attempt of one container is started.
type Launch struct {
	Unit systemd.Unit    `json:"unit"`
	Spec launchspec.Spec `json:"spec"`
	// Relabel is done before the unit is started; it is empty on a host without SELinux.
	Relabel []Relabel `json:"relabel,omitempty"`
}

// defaultPath is containerd's.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// Build computes the unit and the launch spec of an attempt. Errors are *ConfigError and
// *StartRefusal.
func Build(pod *corev1.Pod, c Container, start Start, in PodInputs, cin ContainerInputs) (Launch, error) {
	args, err := argv(c, cin)
	if err != nil {
		return Launch{}, err
	}
	if err := checkStrict(pod, c, in); err != nil {
		return Launch{}, err
	}
	if err := checkUsers(pod, in, cin.Image); err != nil {
		return Launch{}, err
	}
	user, err := userOf(pod, c, cin.Image)
	if err != nil {
		return Launch{}, err
	}
	mounts, err := mountsOf(c, in, cin)
	if err != nil {
		return Launch{}, err
	}
	env := environ(in.Hostname, c, cin)
	if err := checkStrings(c, args, env); err != nil {
		return Launch{}, err
	}
	spec := launchspec.Spec{
		Version: launchspec.Version,
		Pod:     pod.Namespace + "/" + pod.Name, PodUID: string(pod.UID), Container: c.Name, Attempt: start.Attempt,
		Args: toBytes(args), Env: toBytes(env), Dir: workingDir(c, cin.Image),
		User: user, Root: rootOf(pod, c, start.Attempt, in, cin.Image), Mounts: mounts,
		Hostname: in.Hostname, Sysctls: containerSysctls(pod),
		Namespaces: namespaces(pod, in, cin),
		Stdin:      cin.Stdin, Stdout: cin.Stdout, Stderr: cin.Stderr, TTY: c.TTY, Terminal: cin.Terminal,
		ErrorRecord: in.Layout.ErrorRecord(string(pod.UID), c.Name, start.Attempt),
		ExitRecord:  in.Layout.ExitRecord(string(pod.UID), c.Name, start.Attempt),
	}
	if name := unknownCapability(c.SecurityContext); name != "" {
		return Launch{}, &ConfigError{CreateContainerError, fmt.Sprintf("unknown capability %q in securityContext.capabilities.add", name)}
	}
	labels, err := LabelsOf(pod, c, in.SELinux)
	if err != nil {
		return Launch{}, err
	}
	spec.MountLabel = labels.File
	if !cin.Unlabelled {
		spec.SELinux = labels.Process
	}
	spec.AppArmor, spec.HugePages = cin.AppArmor, hugePages(pod, c, in.HugePages)
	secure(&spec, c)
	tighten(&spec, c, in)
	if err := confine(&spec, pod, c, in, cin); err != nil {
		return Launch{}, err
	}
	adjust := oomScoreAdjust(pod, c, in.MemoryCapacity)
	spec.OOMScoreAdj = &adjust
	launch := Launch{Unit: unitOf(pod, c, start, in, cin, &adjust), Spec: spec, Relabel: relabels(pod, c, in, cin, labels.File)}
	if err := addLent(&launch, cin.Lent); err != nil {
		return Launch{}, err
	}
	return launch, addDevices(&launch, c, in)
}

func unitOf(pod *corev1.Pod, c Container, start Start, in PodInputs, cin ContainerInputs, adjust *int) systemd.Unit {
	uid := string(pod.UID)
	unit := systemd.Unit{
		Name:        UnitName(uid, c.Name, start.Attempt),
		Slice:       SliceName(uid, QOS(pod)),
		Description: pod.Namespace + "/" + pod.Name + " " + c.Name,
		Identity: systemd.Identity{
			PodUID: uid, PodNamespace: pod.Namespace, PodName: pod.Name,
			Container: c.Name, Attempt: start.Attempt, SpecHash: SpecHash(c), Image: cin.Image.Digest,
		},
		Resources:      ContainerResources(pod, c),
		LaunchSpec:     in.Layout.LaunchSpec(uid, c.Name, start.Attempt),
		ExitRecord:     in.Layout.ExitRecord(uid, c.Name, start.Attempt),
		OOMScoreAdjust: adjust,
		AllDevices:     privileged(c),
		Strict:         in.Handler == StrictHandler,
	}
	unit.After = startsAfter(pod, c, start.Sandbox)
	unit.StopTimeout = shutdownGrace(pod)
	unit.Wants = nil // a container never pulls another in: restarts are the agent's
	return unit
}

const (
	// maxShutdownGrace bounds what a pod may take of a host's shutdown.
	maxShutdownGrace = 2 * time.Minute
	// minShutdownGrace is what the record of the end gets on a host that is very busy, or very slow:
	// systemd has one time for both (TimeoutStopSec). How the container ended would be lost.
	minShutdownGrace = 10 * time.Second
)

// shutdownGrace is the time between TERM and KILL when systemd itself stops the unit,
// which it does at the host's shutdown: the pod's grace period, as in a deletion, if that is enough.
func shutdownGrace(pod *corev1.Pod) time.Duration {
	grace := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if seconds := pod.Spec.TerminationGracePeriodSeconds; seconds != nil {
		grace = *seconds
	}
	return min(max(time.Duration(grace)*time.Second, minShutdownGrace), maxShutdownGrace)
}

// startsAfter makes the order of init containers visible in the units. Only first attempts
// are named: later ones are not known when the unit is made, and ordering is the agent's.
func startsAfter(pod *corev1.Pod, c Container, sandbox int) []string {
	var after []string
	if SharesPID(pod) { // systemd stops in reverse: the namespace is the last to go
		after = append(after, UnitName(string(pod.UID), PauseName, sandbox))
	}
	for _, other := range Containers(pod) {
		if other.Name == c.Name {
			break
		}
		if other.Role == RoleInit || other.Role == RoleSidecar {
			after = append(after, UnitName(string(pod.UID), other.Name, 0))
		}
	}
	return after
}

// argv follows the documented table of command and args against ENTRYPOINT and CMD.
func argv(c Container, cin ContainerInputs) ([]string, error) {
	lookup := lookupEnv(cin.Env)
	command, args := expandAll(c.Command, lookup), expandAll(c.Args, lookup)
	if len(command) == 0 {
		command = cin.Image.Entrypoint
		if len(args) == 0 {
			args = cin.Image.Cmd
		}
	}
	all := append(append([]string{}, command...), args...)
	if len(all) == 0 {
		return nil, &ConfigError{Reason: CreateContainerError, Message: "no command specified"}
	}
	return all, nil
}

func lookupEnv(env []EnvVar) func(string) (string, bool) {
	values := make(map[string]string, len(env))
	for _, e := range env {
		values[e.Name] = e.Value
	}
	return func(name string) (string, bool) { v, ok := values[name]; return v, ok }
}

func expandAll(in []string, lookup func(string) (string, bool)) []string {
	out := make([]string, len(in))
	for i, s := range in {
		out[i] = Expand(s, lookup)
	}
	return out
}

// environ puts the image's variables first and the container's over them.
func environ(hostname string, c Container, cin ContainerInputs) []string {
	var env []string
	at := map[string]int{}
	set := func(name, value string) {
		entry := name + "=" + value
		if i, ok := at[name]; ok {
			env[i] = entry
			return
		}
		at[name] = len(env)
		env = append(env, entry)
	}
	set("PATH", defaultPath)
	if c.TTY {
		set("TERM", "xterm")
	}
	set("HOSTNAME", hostname)
	for _, e := range cin.Image.Env {
		name, value, _ := strings.Cut(e, "=")
		set(name, value)
	}
	for _, name := range slices.Sorted(maps.Keys(cin.Lent.Env)) {
		set(name, cin.Lent.Env[name])
	}
	for _, e := range cin.Env {
		set(e.Name, e.Value)
	}
	return env
}

// maxArgStrlen is the kernel's MAX_ARG_STRLEN (32 pages of 4 KiB) less the final NUL.
const maxArgStrlen = 131071

func checkStrings(c Container, args, env []string) error {
	for i, arg := range args {
		if problem := badString(arg); problem != "" {
			return &StartRefusal{Message: fmt.Sprintf("container %q: argument %d %s", c.Name, i, problem)}
		}
	}
	for _, e := range env {
		if problem := badString(e); problem != "" {
			name, _, _ := strings.Cut(e, "=")
			return &StartRefusal{Message: fmt.Sprintf("container %q: env %q %s", c.Name, strings.ToValidUTF8(name, "?"), problem)}
		}
	}
	return nil
}

func badString(s string) string {
	switch {
	case len(s) > maxArgStrlen:
		return fmt.Sprintf("has %d bytes, the kernel takes at most %d", len(s), maxArgStrlen)
	case strings.IndexByte(s, 0) >= 0:
		return "contains a NUL byte"
	}
	return ""
}

func toBytes(in []string) [][]byte {
	out := make([][]byte, len(in))
	for i, s := range in {
		out[i] = []byte(s)
	}
	return out
}

func workingDir(c Container, image Image) string {
	switch {
	case c.WorkingDir != "":
		return c.WorkingDir
	case image.WorkingDir != "":
		return image.WorkingDir
	}
	return "/"
}

func rootOf(pod *corev1.Pod, c Container, attempt int, in PodInputs, image Image) launchspec.Root {
	sc := c.SecurityContext
	root := launchspec.Root{Readonly: sc != nil && sc.ReadOnlyRootFilesystem != nil && *sc.ReadOnlyRootFilesystem}
	if image.Host {
		root.HostPath, root.Readonly = image.HostPath, true
		return root
	}
	layer := in.Layout.Layer(string(pod.UID), c.Name, attempt)
	root.Lowers, root.Upper, root.Work = image.Layers, layer+"/upper", layer+"/work"
	return root
}

func namespaces(pod *corev1.Pod, in PodInputs, cin ContainerInputs) launchspec.Namespaces {
	ns := launchspec.Namespaces{
		HostNet: pod.Spec.HostNetwork, HostIPC: pod.Spec.HostIPC, HostPID: pod.Spec.HostPID,
		HostUTS: pod.Spec.HostNetwork, User: in.Users,
	}
	if !ns.HostPID {
		ns.PIDOf = cin.PIDOf
	}
	if !ns.HostNet {
		ns.Net = in.NetNS
	}
	if !ns.HostIPC {
		ns.IPC = in.IPC
	}
	return ns
}
