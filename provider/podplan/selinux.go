package podplan

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// PodSELinux is what labels are made of on a host with SELinux.
type PodSELinux struct {
	// Process and File are the policy's labels of containers (contexts/lxc_contexts), empty where it
	// names none.
	Process string `json:"process,omitempty"`
	File    string `json:"file,omitempty"`
	// Level is the pod's own, for containers that name none.
	Level string `json:"level,omitempty"`
}

// Labels are those of one container; both are empty where it has none.
type Labels struct {
	// Process is the label of its processes, File that of its root and of the volumes that are made
	// for the pod.
	Process, File string
	// Field is where the pod asks for them, empty for defaults.
	Field string
	// Privileged says that Process is the default of privileged containers, which a policy need not know.
	Privileged bool
}

// privilegedType is the type of containers that SELinux keeps from nothing (container-selinux).
const privilegedType = "spc_t"

// label is an SELinux label in its parts; level is empty where the policy has none.
type label struct{ user, role, kind, level string }

func parseLabel(s string) (label, bool) {
	parts := strings.SplitN(s, ":", 4)
	if len(parts) < 3 {
		return label{}, false
	}
	out := label{user: parts[0], role: parts[1], kind: parts[2]}
	if len(parts) == 4 {
		out.level = parts[3]
	}
	return out, true
}

func (l label) String() string {
	s := l.user + ":" + l.role + ":" + l.kind
	if l.level != "" {
		s += ":" + l.level
	}
	return s
}

// LabelsOf are the container's labels: what its seLinuxOptions, or else the pod's, put in place of
// the policy's, as with containerd. Errors are *ConfigError.
func LabelsOf(pod *corev1.Pod, c Container, host *PodSELinux) (Labels, error) {
	if host == nil {
		return Labels{}, nil
	}
	options, field := seLinuxOptions(pod, c)
	if problem := badOptions(options); problem != "" {
		return Labels{}, &ConfigError{CreateContainerError, field + "." + problem}
	}
	process, ok := parseLabel(host.Process)
	file, labelled := parseLabel(host.File)
	if !ok || !labelled {
		if field == "" {
			return Labels{}, nil
		}
		return Labels{}, &ConfigError{CreateContainerError, field + ": the host's SELinux policy names no labels for containers (contexts/lxc_contexts)"}
	}
	out := Labels{Field: field}
	if privileged(c) && options.Type == "" {
		process.kind, out.Privileged = privilegedType, true
	}
	if process.level != "" {
		process.level, file.level = host.Level, host.Level
	}
	replace(&process.role, options.Role)
	replace(&process.kind, options.Type)
	for _, l := range []*label{&process, &file} {
		replace(&l.user, options.User)
		replace(&l.level, options.Level)
	}
	out.Process, out.File = process.String(), file.String()
	return out, nil
}

func replace(part *string, by string) {
	if by != "" {
		*part = by
	}
}

// seLinuxOptions are the container's own, or the pod's, as a whole; field is where they are, empty
// for none.
func seLinuxOptions(pod *corev1.Pod, c Container) (options corev1.SELinuxOptions, field string) {
	if own := containerContext(c).SELinuxOptions; own != nil {
		options, field = *own, c.Field+".securityContext.seLinuxOptions"
	} else if of := podContext(pod).SELinuxOptions; of != nil {
		options, field = *of, "spec.securityContext.seLinuxOptions"
	}
	if options == (corev1.SELinuxOptions{}) {
		field = ""
	}
	return options, field
}

var (
	labelPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	// labelLevel is what containerd takes for one (internal/cri/server, checkSelinuxLevel).
	labelLevel = regexp.MustCompile(`^s\d(-s\d)?(:c\d{1,4}(\.c\d{1,4})?(,c\d{1,4}(\.c\d{1,4})?)*)?$`)
)

// badOptions says what cannot be a part of a label, "" for nothing: it would be another part, or
// another mount option.
func badOptions(o corev1.SELinuxOptions) string {
	for _, part := range []struct{ name, value string }{{"user", o.User}, {"role", o.Role}, {"type", o.Type}} {
		if part.value != "" && !labelPart.MatchString(part.value) {
			return fmt.Sprintf("%s: %q is no SELinux %s", part.name, part.value, part.name)
		}
	}
	if o.Level != "" && !labelLevel.MatchString(o.Level) {
		return fmt.Sprintf("level: the format of %q is not correct: want a level such as s0:c123,c456", o.Level)
	}
	return ""
}

// LabelTrials are labels that differ from the policy's by one option of the container each, by the
// field of the option: the first that the policy refuses is the one to be told of.
func LabelTrials(pod *corev1.Pod, c Container, host *PodSELinux) []Labels {
	options, field := seLinuxOptions(pod, c)
	base, ok := parseLabel(host.Process)
	if field == "" || !ok {
		return nil
	}
	var out []Labels
	for _, part := range []struct {
		name, value string
		of          func(*label) *string
	}{
		{"user", options.User, func(l *label) *string { return &l.user }},
		{"role", options.Role, func(l *label) *string { return &l.role }},
		{"type", options.Type, func(l *label) *string { return &l.kind }},
		{"level", options.Level, func(l *label) *string { return &l.level }},
	} {
		if part.value == "" {
			continue
		}
		trial := base
		*part.of(&trial) = part.value
		out = append(out, Labels{Process: trial.String(), Field: field + "." + part.name})
	}
	return out
}

// Relabel is a file or directory of the host that gets a container's label before it starts, with
// all that is in it if Recursive.
type Relabel struct {
	Path      string `json:"path"`
	Label     string `json:"label"`
	Recursive bool   `json:"recursive,omitempty"`
}

// relabels lists what the container must be able to use: the pod's files, its streams, and the
// volumes that are the pod's. A hostPath is the host's, and so is its /dev/shm.
func relabels(pod *corev1.Pod, c Container, in PodInputs, cin ContainerInputs, file string) []Relabel {
	if file == "" {
		return nil
	}
	paths := []string{in.HostnameFile, in.ResolvConf, in.Hosts, cin.TerminationLog, cin.Stdin, cin.Stdout, cin.Stderr}
	if !pod.Spec.HostIPC {
		paths = append(paths, in.Shm)
	}
	var out []Relabel
	for _, path := range paths {
		if path != "" {
			out = append(out, Relabel{Path: path, Label: file})
		}
	}
	for _, mount := range c.VolumeMounts {
		volume := in.Volumes[mount.Name]
		entry := Relabel{Path: volume.Path, Label: file, Recursive: true}
		if volume.Relabel && !slices.Contains(out, entry) {
			out = append(out, entry)
		}
	}
	return out
}

// MountLabels are the labels that volumes may be mounted with, by the volumes' names: those that all
// containers which use the volume ask for by level. Others' levels are not the cluster's to know.
func MountLabels(pod *corev1.Pod, host *PodSELinux) map[string]string {
	policy := podContext(pod).SELinuxChangePolicy
	if host == nil || policy != nil && *policy == corev1.SELinuxChangePolicyRecursive {
		return nil
	}
	out := map[string]string{}
	for _, c := range Containers(pod) {
		wanted := ""
		if options, _ := seLinuxOptions(pod, c); options.Level != "" {
			if labels, err := LabelsOf(pod, c, host); err == nil {
				wanted = labels.File
			}
		}
		for _, mount := range c.VolumeMounts {
			if have, seen := out[mount.Name]; seen && have != wanted {
				out[mount.Name] = ""
				continue
			}
			out[mount.Name] = wanted
		}
	}
	for name, wanted := range out {
		if wanted == "" {
			delete(out, name)
		}
	}
	return out
}
