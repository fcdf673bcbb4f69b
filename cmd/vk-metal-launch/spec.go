//go:build linux

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// Exit codes of a container that never came to run, as containerd's users know them.
const (
	exitNotExecutable = 126
	exitNotFound      = 127
	exitOther         = 128
)

// maxArgStrlen is the kernel's MAX_ARG_STRLEN less the terminating NUL: no single
// argument or environment entry can be longer (linux/binfmts.h).
const maxArgStrlen = 32*4096 - 1

// loadSpec reads and checks a Spec. The spec is returned even when it is not valid,
// so that the caller knows where to write the error.
func loadSpec(path string) (*launchspec.Spec, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read launch spec: %w", err)
	}
	spec := new(launchspec.Spec)
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("parse launch spec %s: %w", path, err)
	}
	return spec, checkSpec(spec)
}

func checkSpec(spec *launchspec.Spec) error {
	if spec.Version != launchspec.Version {
		return fmt.Errorf("launch spec has version %d, this launcher knows %d", spec.Version, launchspec.Version)
	}
	if spec.Pause {
		return nil
	}
	if len(spec.Args) == 0 || len(spec.Args[0]) == 0 {
		return fmt.Errorf("container %q: no command specified", spec.Container)
	}
	if err := checkStrings(spec.Container, "args", spec.Args); err != nil {
		return err
	}
	if err := checkStrings(spec.Container, "env", spec.Env); err != nil {
		return err
	}
	if spec.Root.HostPath == "" && len(spec.Root.Lowers) == 0 {
		return fmt.Errorf("container %q: root has neither layers nor a host path", spec.Container)
	}
	if spec.TTY && spec.Terminal == nil {
		return fmt.Errorf("container %q: nobody takes its terminal", spec.Container)
	}
	return nil
}

// checkStrings refuses what execve cannot carry. Values are never shown: they may be secrets.
func checkStrings(container, field string, values [][]byte) error {
	for i, value := range values {
		what := fmt.Sprintf("container %q: %s[%d]", container, field, i)
		if field == "env" {
			name, _, ok := bytes.Cut(value, []byte("="))
			if !ok {
				return fmt.Errorf("%s is not of the form NAME=value", what)
			}
			what = fmt.Sprintf("container %q: env %q", container, name)
		}
		switch {
		case len(value) > maxArgStrlen:
			return fmt.Errorf("%s is %d bytes long, the kernel takes at most %d", what, len(value), maxArgStrlen)
		case bytes.IndexByte(value, 0) >= 0:
			return fmt.Errorf("%s contains a NUL byte", what)
		}
	}
	return nil
}

// startError is an error with the exit code that the container ends with.
type startError struct {
	err  error
	code int
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func toStartError(err error) *launchspec.StartError {
	code := exitOther
	var se *startError
	if errors.As(err, &se) {
		code = se.code
	}
	return &launchspec.StartError{
		Reason:  "StartError",
		Message: "unable to start container process: " + err.Error(),
		Code:    code,
	}
}

// processPath is where a launcher leaves the launchspec.Process of its attempt.
func processPath(specPath string) string {
	return filepath.Join(filepath.Dir(specPath), launchspec.ProcessFile)
}

// writeJSON replaces a file atomically. It does not sync: the files live in a tmpfs.
func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	tmp := fmt.Sprintf("%s.%d.tmp", path, os.Getpid())
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func stringsOf(values [][]byte) []string {
	out := make([]string, len(values))
	for i, value := range values {
		out[i] = string(value)
	}
	return out
}
