package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
)

// diagnosis is what CollectLogs asks a machine: file name → shell command.
var diagnosis = map[string]string{
	"journal.log":         "journalctl --no-pager -b -o short-precise",
	"kernel-messages.log": "dmesg 2>/dev/null | tail -n 500",
	"units.txt":           "systemctl --no-pager list-units --all --full",
	"jobs.txt":            "systemctl --no-pager list-jobs",
	"unit-properties.txt": "systemctl --no-pager show 'vk-metal*' 'vkm-*' 'kubepods*'",
	"unit-status.txt":     "systemctl --no-pager status --full --lines=50 'vk-metal*' 'vkm-*' 'kubepods*'",
	"cgroups.txt":         "systemd-cgls --no-pager --full",
	"processes.txt":       "for p in /proc/[0-9]*; do printf '%s ' \"${p#/proc/}\"; tr '\\0' ' ' <$p/cmdline; echo; done",
	"network.txt":         "ip addr; ip route show table all; ip -6 route; ip neigh; ip netns",
	"nftables.txt":        "nft list ruleset",
	"mounts.txt":          "cat /proc/self/mountinfo",
	"vk-metal-state.txt":  "find /run/vk-metal /var/lib/vk-metal -maxdepth 6 -not -path '*/images/*' -ls",
}

// CollectLogs writes into dir what explains a failure: for each machine its journal,
// unit list, properties of vk-metal's units and of the pods' slices, addresses,
// routes, nftables rules, console, /etc/vk-metal's pod logs; and every process's log. It
// collects what it can and joins the errors of what it cannot.
func (r *Rig) CollectLogs(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	var errs []error
	for _, m := range r.Machines() {
		errs = append(errs, m.collect(ctx, filepath.Join(dir, m.Name)))
	}
	ps, err := r.Processes()
	errs = append(errs, err)
	for _, p := range ps {
		errs = append(errs, copyFile(p.LogPath, filepath.Join(dir, filepath.Base(p.LogPath))))
	}
	return errors.Join(errs...)
}

// collect diagnoses one machine; of one that is off it reads the disk.
func (m *Machine) collect(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	errs := []error{copyFile(m.ConsolePath(), filepath.Join(dir, "console.log"))}
	if _, err := m.leader(ctx); err != nil {
		errs = append(errs, m.diskJournal(ctx, filepath.Join(dir, "journal.log")))
		return errors.Join(errs...)
	}
	for name, script := range diagnosis {
		errs = append(errs, m.collectOne(ctx, filepath.Join(dir, name), script))
	}
	logs := m.Exec(ctx, Command{Argv: []string{"test", "-d", "/var/log/pods"}})
	if logs == nil {
		errs = append(errs, m.CopyOut(ctx, "/var/log/pods", filepath.Join(dir, "pods")))
	}
	return errors.Join(errs...)
}

// collectOne writes a command's whole output to a file. A command that fails says why
// there; only not being able to run it is an error.
func (m *Machine) collectOne(ctx context.Context, path, script string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	defer f.Close()
	err = m.Exec(ctx, Command{Argv: []string{"/bin/sh", "-c", script}, Stdout: f, Stderr: f})
	var exit *ExitError
	if errors.As(err, &exit) {
		_, err = fmt.Fprintf(f, "exit code %d\n", exit.Code)
	}
	return err
}

// diskJournal reads the journal files of a machine that is off.
func (m *Machine) diskJournal(ctx context.Context, path string) error {
	f, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("collect logs: %w", err)
	}
	defer f.Close()
	cmd := exec.CommandContext(ctx, "journalctl", "--no-pager", "-o", "short-precise", "-D", filepath.Join(m.Root(), "var/log/journal"))
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("read journal of machine %s: %w", m.Name, err)
	}
	return nil
}

// keepConsole moves a machine's console to the logs that outlive the rig.
func (r *Rig) keepConsole(machine string) {
	to := filepath.Join(r.dir, "logs", "console-"+machine+".log")
	_ = copyFile(filepath.Join(r.machineDir(machine), "console.log"), to) // a machine never started has none
}

// copyFile copies a file's content; a missing source is not an error.
func copyFile(from, to string) error {
	src, err := os.Open(from)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	defer src.Close()
	dst, err := os.Create(to)
	if err != nil {
		return fmt.Errorf("copy log: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy log %s: %w", from, err)
	}
	return nil
}
