package rig

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// The names under which this executable starts itself again.
const (
	arg0Exec      = "vk-metal-rig-exec"
	arg0Supervise = "vk-metal-rig-supervise"
)

// statusFD is where the exec helper writes why it failed; it closes on exec.
const statusFD = 3

func init() {
	switch os.Args[0] {
	case arg0Exec:
		runtime.LockOSThread()
		err := execMain(os.Args[1])
		_, _ = os.NewFile(statusFD, "status").WriteString(err.Error())
		os.Exit(127)
	case arg0Supervise:
		os.Exit(superviseMain(os.Args[1:]))
	case arg0Agent:
		os.Exit(agentMain())
	}
}

// execSpec tells the exec helper where to go before it becomes the program. Being in
// its cgroup before the program starts, nothing the program does escapes Down.
type execSpec struct {
	Cgroups []string `json:"cgroups"`
	Netns   string   `json:"netns,omitempty"`
	Nice    int      `json:"nice,omitempty"`
	Dir     string   `json:"dir,omitempty"`
	Path    string   `json:"path"`
	Argv    []string `json:"argv"`
	Env     []string `json:"env"`
}

// execMain joins cgroups and namespace on the locked thread and execs.
func execMain(arg string) error {
	unix.CloseOnExec(statusFD)
	var spec execSpec
	if err := json.Unmarshal([]byte(arg), &spec); err != nil {
		return fmt.Errorf("parse exec spec: %w", err)
	}
	for _, dir := range spec.Cgroups {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	if spec.Netns != "" {
		if err := enterNetns(spec.Netns); err != nil {
			return err
		}
	}
	if spec.Nice != 0 {
		if err := unix.Setpriority(unix.PRIO_PROCESS, 0, spec.Nice); err != nil {
			return fmt.Errorf("set priority: %w", err)
		}
	}
	if err := os.Chdir(spec.Dir); err != nil {
		return fmt.Errorf("enter working directory: %w", err)
	}
	err := unix.Exec(spec.Path, spec.Argv, spec.Env)
	return fmt.Errorf("exec %s: %w", spec.Path, err)
}

// startExec starts this executable as the helper that becomes spec, in a session of its
// own, and returns once it has become it.
func startExec(spec execSpec, stdout, stderr *os.File) (*exec.Cmd, error) {
	arg, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode exec spec: %w", err)
	}
	pr, pw, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make status pipe: %w", err)
	}
	defer pr.Close()
	cmd := &exec.Cmd{
		Path: "/proc/self/exe", Args: []string{arg0Exec, string(arg)}, Env: []string{},
		Stdout: stdout, Stderr: stderr, ExtraFiles: []*os.File{pw},
		SysProcAttr: &unix.SysProcAttr{Setsid: true},
	}
	err = cmd.Start()
	_ = pw.Close()
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Path, err)
	}
	if why := readAll(pr); why != "" {
		_ = cmd.Wait()
		return nil, fmt.Errorf("start %s: %s", spec.Path, why)
	}
	return cmd, nil
}

// readAll reads the status pipe until exec or death closes it.
func readAll(f *os.File) string {
	b := make([]byte, 4096)
	n := 0
	for n < len(b) {
		m, err := f.Read(b[n:])
		n += m
		if err != nil {
			break
		}
	}
	return string(b[:n])
}
