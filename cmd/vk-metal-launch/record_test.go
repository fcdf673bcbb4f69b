//go:build linux

package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// TestRecordOutlivesTERM: systemd loses patience with a record on a slow machine; how the container
// ended is written nevertheless.
func TestRecordOutlivesTERM(t *testing.T) {
	dir := t.TempDir()
	specPath, exitPath := filepath.Join(dir, "launch.json"), filepath.Join(dir, "exit.json")
	if err := unix.Mkfifo(specPath, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "record", specPath)
	cmd.Env = append(os.Environ(), "EXIT_CODE=exited", "EXIT_STATUS=3")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	spec, err := os.OpenFile(specPath, os.O_WRONLY, 0) // once it reads
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := json.NewEncoder(spec).Encode(launchspec.Spec{Version: launchspec.Version, ExitRecord: exitPath}); err != nil {
		t.Fatal(err)
	}
	if err := spec.Close(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	var exit launchspec.Exit
	if !readJSON(exitPath, &exit) || exit.ExitCode != 3 {
		t.Errorf("recorded %+v, want 3", exit)
	}
}
