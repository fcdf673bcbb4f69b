package devices

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	oci "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Node is a device node to be made in the container; Permissions are of r, w and m.
type Node struct {
	Path                         string
	Block                        bool
	Major, Minor, Mode, UID, GID uint32
	Permissions                  string
}

// nodeMode is that of a node whose specification names none (a container runtime's).
const nodeMode = 0o666

// AddCDI adds what the specifications of the Container Device Interface say of the devices, by
// their qualified names (vendor.com/class=name). They are read anew each time: plugins write
// them when they like. What this node cannot do for a device is an error.
func (l *Lent) AddCDI(dirs, names []string) error {
	if len(names) == 0 {
		return nil
	}
	if l.Env == nil {
		l.Env = map[string]string{}
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return fmt.Errorf("read CDI specifications in %s: %w", strings.Join(dirs, ", "), err)
	}
	spec := &oci.Spec{Process: &oci.Process{}, Linux: &oci.Linux{Resources: &oci.LinuxResources{}}}
	if missing, err := cache.InjectDevices(spec, names...); err != nil {
		return errors.Join(fmt.Errorf("find CDI devices %s in %s: %w", strings.Join(missing, ", "), strings.Join(dirs, ", "), err), specErrors(cache))
	}
	if err := cannot(spec); err != nil {
		return fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	for _, variable := range spec.Process.Env {
		name, value, _ := strings.Cut(variable, "=")
		l.Env[name] = value
	}
	for i := range spec.Mounts {
		mount, err := cdiMount(&spec.Mounts[i])
		if err != nil {
			return fmt.Errorf("CDI devices %s: %w", strings.Join(names, ", "), err)
		}
		l.Mounts = append(l.Mounts, mount)
	}
	for i := range spec.Linux.Devices {
		l.Nodes = append(l.Nodes, cdiNode(&spec.Linux.Devices[i], spec.Linux.Resources.Devices))
	}
	if spec.Hooks != nil {
		for _, h := range spec.Hooks.CreateContainer {
			l.Hooks = append(l.Hooks, cdiHook(h))
		}
	}
	l.Groups = append(l.Groups, spec.Process.User.AdditionalGids...)
	return nil
}

// specErrors are those of the files that could not be read: one may be what is missed.
func specErrors(cache *cdi.Cache) error {
	var errs []error
	for path, list := range cache.GetErrors() {
		errs = append(errs, fmt.Errorf("%s: %w", path, errors.Join(list...)))
	}
	return errors.Join(errs...)
}

// cannot names what a device needs and this node does not do.
func cannot(spec *oci.Spec) error {
	switch {
	case otherHooks(spec.Hooks) != "":
		return fmt.Errorf("their specification has %s hooks, of which this node runs createContainer ones only", otherHooks(spec.Hooks))
	case spec.Linux.IntelRdt != nil:
		return errors.New("their specification has intelRdt, which this node does not support")
	case len(spec.Linux.NetDevices) > 0:
		return errors.New("their specification has netDevices, which this node does not support")
	}
	return nil
}

// otherHooks names a kind of hooks that is there and not createContainer. Those of the kinds before
// it are for programs in a container runtime's place, those after it for inside.
func otherHooks(h *oci.Hooks) string {
	switch {
	case h == nil:
		return ""
	case len(h.Prestart) > 0: //nolint:staticcheck // specifications may still have them
		return "prestart"
	case len(h.CreateRuntime) > 0:
		return "createRuntime"
	case len(h.StartContainer) > 0:
		return "startContainer"
	case len(h.Poststart) > 0:
		return "poststart"
	case len(h.Poststop) > 0:
		return "poststop"
	}
	return ""
}

func cdiHook(h oci.Hook) Hook {
	out := Hook{Path: h.Path, Args: h.Args, Env: h.Env}
	if h.Timeout != nil {
		out.Timeout = *h.Timeout
	}
	return out
}

func cdiMount(m *oci.Mount) (Mount, error) {
	out := Mount{HostPath: m.Source, ContainerPath: m.Destination}
	if m.Type != "" && m.Type != "bind" && m.Type != "none" {
		return out, fmt.Errorf("mount %s is of type %q, which this node does not support", m.Destination, m.Type)
	}
	for _, option := range m.Options {
		switch option {
		case "ro":
			out.ReadOnly = true
		case "nosuid":
			out.NoSuid = true
		case "nodev":
			out.NoDev = true
		case "noexec":
			out.NoExec = true
		case "rw", "suid", "dev", "exec", "bind", "rbind", "private", "rprivate":
		default:
			return out, fmt.Errorf("mount %s has option %q, which this node does not support", m.Destination, option)
		}
	}
	return out, nil
}

// cdiNode takes a device and its rule.
func cdiNode(d *oci.LinuxDevice, rules []oci.LinuxDeviceCgroup) Node {
	node := Node{Path: d.Path, Block: d.Type == "b", Major: uint32(d.Major), Minor: uint32(d.Minor), Mode: nodeMode, Permissions: "rwm"}
	if d.FileMode != nil {
		node.Mode = uint32(d.FileMode.Perm())
	}
	if d.UID != nil {
		node.UID = *d.UID
	}
	if d.GID != nil {
		node.GID = *d.GID
	}
	i := slices.IndexFunc(rules, func(r oci.LinuxDeviceCgroup) bool {
		return r.Allow && r.Type == d.Type && r.Major != nil && *r.Major == d.Major && r.Minor != nil && *r.Minor == d.Minor
	})
	if i >= 0 {
		node.Permissions = rules[i].Access
	}
	return node
}
