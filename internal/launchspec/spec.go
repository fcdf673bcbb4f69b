// Package launchspec is the contract between the agent, which writes one Spec
// per container attempt, and cmd/vk-metal-launch, which reads it and becomes the
// container. It owns the wire form only: standard library, no Kubernetes types,
// nothing that acts.
//
// A Spec lies in a directory of /run that only root can enter, because Env holds
// secrets. It never goes into argv, unit properties or logs.
package launchspec

// Version is written into every Spec; the launcher refuses any other.
const Version = 1

// Spec says everything that the launcher does to turn itself into a container.
type Spec struct {
	Version int `json:"version"`

	// Pod ("namespace/name"), PodUID, Container and Attempt name the container in errors.
	Pod       string `json:"pod"`
	PodUID    string `json:"podUID"`
	Container string `json:"container"`
	Attempt   int    `json:"attempt"`

	// Pause makes the process the one that keeps a pod's PID namespace: PauseProgram, with
	// nobody's identity and an empty root. Of the fields below only Namespaces, Hostname,
	// SeccompBPF, OOMScoreAdj and the records count then.
	Pause bool `json:"pause,omitempty"`

	// Args is argv. Args[0] is looked up in Env's PATH inside the root when it has
	// no slash. Bytes, because JSON strings cannot hold what execve can.
	Args [][]byte `json:"args"`
	// Env holds KEY=value in order; duplicates have been removed by the agent.
	Env [][]byte `json:"env"`
	// Dir is the working directory inside the root, made if it is missing.
	Dir string `json:"dir"`

	User User `json:"user"`

	Root   Root    `json:"root"`
	Mounts []Mount `json:"mounts"` // in order, after /proc, /dev, /sys

	Devices []Device `json:"devices,omitempty"`

	// MaskedPaths are hidden, ReadonlyPaths remounted read-only (inside the root).
	MaskedPaths   []string `json:"maskedPaths,omitempty"`
	ReadonlyPaths []string `json:"readonlyPaths,omitempty"`

	// Hooks are run when the root is complete and not yet the container's, in order.
	Hooks []Hook `json:"hooks,omitempty"`

	Hostname string            `json:"hostname"`
	Sysctls  map[string]string `json:"sysctls,omitempty"`

	Namespaces Namespaces `json:"namespaces"`

	// Capabilities to keep ("CAP_CHOWN"); everything else is dropped from every set.
	// Ambient stays empty for non-root users, as with a container runtime.
	Capabilities    []string `json:"capabilities"`
	NoNewPrivileges bool     `json:"noNewPrivileges"`
	Privileged      bool     `json:"privileged"`
	// SeccompBPF is a compiled classic-BPF program (struct sock_filter array), empty for none.
	SeccompBPF []byte `json:"seccompBPF,omitempty"`
	// SeccompFlags are SECCOMP_FILTER_FLAG_* for the program.
	SeccompFlags uint32 `json:"seccompFlags,omitempty"`
	// AppArmor is the profile that confines the process, empty for none.
	AppArmor string `json:"appArmor,omitempty"`
	// SELinux is the label of the process, MountLabel that of the files in its root and in what is
	// mounted for it alone; empty for none.
	SELinux    string   `json:"seLinux,omitempty"`
	MountLabel string   `json:"mountLabel,omitempty"`
	Rlimits    []Rlimit `json:"rlimits,omitempty"`
	Umask      *uint32  `json:"umask,omitempty"`
	// HugePages limits what the container, and its pod, may take of each size.
	HugePages []HugePages `json:"hugePages,omitempty"`
	// OOMScoreAdj is tried and not insisted on: lowering it needs CAP_SYS_RESOURCE.
	OOMScoreAdj *int `json:"oomScoreAdj,omitempty"`

	// Stdin, Stdout and Stderr are FIFOs of the host, empty for /dev/null. Stdout and
	// Stderr are opened O_RDWR so that a restart of the log writer never raises
	// SIGPIPE. With TTY the three are a pseudo-terminal of the container's own, also at
	// /dev/console, whose master goes to Terminal.
	Stdin  string `json:"stdin,omitempty"`
	Stdout string `json:"stdout,omitempty"`
	Stderr string `json:"stderr,omitempty"`
	TTY    bool   `json:"tty,omitempty"`
	// Terminal must be set with TTY.
	Terminal *Terminal `json:"terminal,omitempty"`

	// ErrorRecord is where the launcher writes a StartError (JSON) when it cannot get
	// as far as execve; ExitRecord is where `vk-metal-launch record` writes an Exit.
	ErrorRecord string `json:"errorRecord"`
	ExitRecord  string `json:"exitRecord"`
}

// HugePages is the limit of one size of pages. Size is how the kernel's files call it ("2MB"),
// Container and Pod are in bytes.
type HugePages struct {
	Size      string `json:"size"`
	Container uint64 `json:"container"`
	Pod       uint64 `json:"pod"`
}

// PauseProgram is what a pod's first process is called, in its containers' eyes too.
const PauseProgram = "/pause"

// Terminal says who gets the master of a container's pseudo-terminal: the log writer, on
// its SOCK_SEQPACKET socket, for the stream of that name. The packet is TerminalPacket and
// the name, the answer TerminalTaken or anything else and why not.
type Terminal struct {
	Socket string `json:"socket"`
	Stream string `json:"stream"`
}

// First bytes of the packets that hand over a terminal (logstream.PacketTerminal, PacketOK).
const (
	TerminalPacket = 'T'
	TerminalTaken  = 'K'
)

// User is who the process runs as. Name is resolved in the root's /etc/passwd and
// /etc/group ("", "uid", "name", "uid:gid", "name:group") unless UID is set.
type User struct {
	Name   string   `json:"name,omitempty"`
	UID    *uint32  `json:"uid,omitempty"`
	GID    *uint32  `json:"gid,omitempty"`
	Groups []uint32 `json:"groups,omitempty"` // supplementary, besides the image's
	// StrictGroups leaves out the groups that the root's /etc/group gives the user
	// (supplementalGroupsPolicy: Strict).
	StrictGroups bool `json:"strictGroups,omitempty"`
}

// Root is the container's root file system.
type Root struct {
	// Lowers are unpacked layers, topmost first; Upper and Work belong to this attempt.
	Lowers []string `json:"lowers,omitempty"`
	Upper  string   `json:"upper,omitempty"`
	Work   string   `json:"work,omitempty"`
	// HostPath runs from a directory of the host ("/" for a host image) without an
	// overlay of layers.
	HostPath string `json:"hostPath,omitempty"`
	Readonly bool   `json:"readonly,omitempty"`
}

// Mount kinds.
const (
	MountBind   = "bind"
	MountTmpfs  = "tmpfs"
	MountProc   = "proc"
	MountSysfs  = "sysfs"
	MountCgroup = "cgroup" // own cgroup namespace, all controllers of the host
	MountMqueue = "mqueue"
	MountDevpts = "devpts"
	MountImage  = "image" // an image's root, always read-only
)

// Mount is one mount inside the root. Target is resolved inside the root: a
// symlink in the image never leads out of it.
type Mount struct {
	Kind   string `json:"kind"`
	Source string `json:"source,omitempty"`
	// Lowers are the unpacked layers of MountImage, topmost first.
	Lowers []string `json:"lowers,omitempty"`
	Target string   `json:"target"`
	// SubPath is resolved below Source without following a symlink out of it.
	SubPath string `json:"subPath,omitempty"`
	// File says that Target is a file, made empty if it is missing.
	File      bool `json:"file,omitempty"`
	Readonly  bool `json:"readonly,omitempty"`
	Recursive bool `json:"recursive,omitempty"` // rbind
	// WritableBelow says that Readonly is for the mount alone, not for those below it.
	WritableBelow bool   `json:"writableBelow,omitempty"`
	Options       string `json:"options,omitempty"` // file-system data, e.g. size=, mode=
	// Propagation is private (""), rslave (HostToContainer) or rshared (Bidirectional).
	Propagation string `json:"propagation,omitempty"`
	NoExec      bool   `json:"noExec,omitempty"`
	NoSuid      bool   `json:"noSuid,omitempty"`
	NoDev       bool   `json:"noDev,omitempty"`
}

// Device is a node made in the container's /dev.
type Device struct {
	Path         string `json:"path"`
	Type         string `json:"type"` // c or b
	Major, Minor uint32
	Mode         uint32 `json:"mode"`
	UID, GID     uint32
}

// Namespaces are joined by path; an empty path makes a new one, the Host flags keep
// the host's. The cgroup and mount namespaces are always new.
type Namespaces struct {
	// User is the pod's user namespace, nil for the host's. Net and IPC belong to it then,
	// and so do the namespaces that are made.
	User *UserNamespace `json:"user,omitempty"`

	Net string `json:"net,omitempty"`
	IPC string `json:"ipc,omitempty"`
	// PIDOf is the unit whose PID namespace is joined: a pod's pause process, or an
	// ephemeral container's target. nil makes a new one.
	PIDOf   *UnitProcess `json:"pidOf,omitempty"`
	HostNet bool         `json:"hostNet,omitempty"`
	HostIPC bool         `json:"hostIPC,omitempty"`
	HostPID bool         `json:"hostPID,omitempty"`
	HostUTS bool         `json:"hostUTS,omitempty"`
}

// UserNamespace maps the IDs 0 to Size-1 of a pod to the host's from First on, users and
// groups alike.
type UserNamespace struct {
	Path  string `json:"path"`
	First uint32 `json:"first"`
	Size  uint32 `json:"size"`
}

// UnitProcess is the main process of another unit in the same slice. The number alone
// could be another process's by now: the launcher takes it only if it is in that unit.
type UnitProcess struct {
	Unit string `json:"unit"`
	PID  int    `json:"pid,omitempty"`
}

// Rlimit is one resource limit; Type is the RLIMIT_ name without its prefix.
type Rlimit struct {
	Type       string `json:"type"`
	Soft, Hard uint64
}

// StartError is what the launcher writes when the container cannot start. The
// process then exits with Code.
type StartError struct {
	// Reason is StartError or, for execve failures that a kubelet shows so, ContainerCannotRun.
	Reason  string `json:"reason"`
	Message string `json:"message"`
	Code    int    `json:"code"` // 127 not found, 126 not executable, 128 otherwise
}

// Exit is the record of one ended attempt.
type Exit struct {
	PodUID    string `json:"podUID"`
	Container string `json:"container"`
	Attempt   int    `json:"attempt"`
	// ExitCode is the process's own, or 128+Signal; Signal is 0 unless a signal ended it.
	ExitCode  int  `json:"exitCode"`
	Signal    int  `json:"signal,omitempty"`
	OOMKilled bool `json:"oomKilled,omitempty"`
	// StartedAt and FinishedAt are RFC 3339 with nanoseconds, UTC.
	StartedAt  string `json:"startedAt"`
	FinishedAt string `json:"finishedAt"`
	// ServiceResult is systemd's $SERVICE_RESULT.
	ServiceResult string      `json:"serviceResult,omitempty"`
	StartError    *StartError `json:"startError,omitempty"`
}

// ProcessFile is the file beside the Spec where the launcher leaves a Process.
const ProcessFile = "process.json"

// Process is what the launcher resolved when it started the container. `exec` runs as
// the same user even if the container has changed its own /etc/passwd since.
type Process struct {
	// StartedAt is RFC 3339 with nanoseconds, UTC.
	StartedAt string   `json:"startedAt"`
	UID       uint32   `json:"uid"`
	GID       uint32   `json:"gid"`
	Groups    []uint32 `json:"groups,omitempty"`
	Home      string   `json:"home"`
	// Rlimits are those that the unit gave it; `exec` has the same.
	Rlimits []Rlimit `json:"rlimits,omitempty"`
}

// ExecMessage is what `vk-metal-launch exec` tells the agent, in this order: the PID to be
// put into the unit's cgroups; with a terminal, Terminal with the master's descriptor
// (SCM_RIGHTS); then Started or Error. It waits for one byte in reply to the first two.
type ExecMessage struct {
	PID      int         `json:"pid,omitempty"`
	Terminal bool        `json:"terminal,omitempty"`
	Started  bool        `json:"started,omitempty"`
	Error    *StartError `json:"error,omitempty"`
}

// Hook is a createContainer hook of the OCI runtime specification: a program of the host that runs
// as root in the container's namespaces.
type Hook struct {
	Path string   `json:"path"`
	Args []string `json:"args,omitempty"` // argv, with argv[0]
	Env  []string `json:"env,omitempty"`  // all that it gets
	// Timeout in seconds; 0 is the launcher's.
	Timeout int `json:"timeout,omitempty"`
}
