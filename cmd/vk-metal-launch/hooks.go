//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

const (
	// hookPatience is for hooks that name no timeout.
	hookPatience = 30 * time.Second
	// hookOutput is how much of a hook's output an error quotes, in bytes.
	hookOutput = 1 << 10

	ociVersion = "1.2.0"
)

// hookState is what a hook reads from its standard input (State of the OCI runtime specification).
type hookState struct {
	Version string `json:"ociVersion"`
	ID      string `json:"id"`
	Status  string `json:"status"`
	Pid     int    `json:"pid"`
	Bundle  string `json:"bundle"`
}

// hookConfig is the part of a bundle's config.json that says where the container's root is. It has
// nothing of the process: its environment holds secrets.
type hookConfig struct {
	Version string   `json:"ociVersion"`
	Root    hookRoot `json:"root"`
}

type hookRoot struct {
	Path string `json:"path"`
}

// runHooks runs the createContainer hooks, by the host's paths, in the container's namespaces. Below
// the scratch directory they see its root, complete and not yet read-only. They get no variable but
// their own and begin outside of the root: nothing of the image decides what they load
// (CVE-2025-23266).
func runHooks(spec *launchspec.Spec, scratch string) error {
	if len(spec.Hooks) == 0 {
		return nil
	}
	if scratch == "" || spec.Root.HostPath != "" {
		return errors.New("hooks of CDI devices need an image's root and the host's users")
	}
	config, err := json.Marshal(hookConfig{ociVersion, hookRoot{filepath.Join(scratch, "root")}})
	if err != nil {
		return fmt.Errorf("tell hooks: %w", err)
	}
	if err := os.WriteFile(filepath.Join(scratch, "config.json"), config, 0o600); err != nil {
		return fmt.Errorf("tell hooks: %w", err)
	}
	state, err := json.Marshal(hookState{ociVersion, spec.PodUID + "." + spec.Container, "creating", os.Getpid(), scratch})
	if err != nil {
		return fmt.Errorf("tell hooks: %w", err)
	}
	for _, hook := range spec.Hooks {
		if !filepath.IsAbs(hook.Path) { // it would begin beside the container's root
			return fmt.Errorf("run hook %q of a CDI device: its path is not absolute", hook.Path)
		}
		if err := runHook(hook, scratch, state); err != nil {
			return fmt.Errorf("run hook %s of a CDI device: %w", hook.Path, err)
		}
	}
	return nil
}

// runHook runs one to its end. Its output is a file: who inherits that holds nobody up.
func runHook(hook launchspec.Hook, scratch string, state []byte) error {
	input, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer input.Close()
	output, err := os.OpenFile(filepath.Join(scratch, "hook-output"), os.O_RDWR|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return errors.Join(err, writer.Close())
	}
	defer output.Close()
	_, err = writer.Write(state) // less than a pipe holds
	if err := errors.Join(err, writer.Close()); err != nil {
		return err
	}
	args := hook.Args
	if len(args) == 0 {
		args = []string{hook.Path}
	}
	env := hook.Env
	if env == nil {
		env = []string{} // nil is our own
	}
	process, err := os.StartProcess(hook.Path, args, &os.ProcAttr{Dir: scratch, Env: env, Files: []*os.File{input, output, output}})
	if err != nil {
		return err
	}
	return waitHook(process, hook, output)
}

func waitHook(process *os.Process, hook launchspec.Hook, output *os.File) error {
	patience := hookPatience
	if hook.Timeout > 0 {
		patience = time.Duration(hook.Timeout) * time.Second
	}
	timer := time.AfterFunc(patience, func() { _ = process.Kill() })
	state, err := process.Wait()
	switch late := !timer.Stop(); {
	case err != nil:
		return err
	case late:
		return fmt.Errorf("not over after %s", patience)
	case state.Success():
		return nil
	}
	said, _ := io.ReadAll(io.NewSectionReader(output, 0, hookOutput))
	return fmt.Errorf("%s: %s", state, strings.TrimSpace(string(said)))
}
