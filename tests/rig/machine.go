package rig

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// MachineConfig says what machine to make.
type MachineConfig struct {
	// Name is the host name.
	Name string `json:"name"`
	// Rack is the rack it sits in; "" is the first.
	Rack string `json:"rack"`
	// Binds are extra directories of the host, seen by the machine.
	Binds []Bind `json:"binds,omitempty"`
	// VM makes it a virtual machine (QEMU, software emulation: slow) with VMRoot's
	// system: cgroup v2 and a kernel of its own. It takes no Binds and has no Root.
	VM bool `json:"vm,omitempty"`
}

// Bind shows a directory or file of the host at a path of the machine.
type Bind struct {
	Host     string `json:"host"`
	Machine  string `json:"machine"`
	ReadOnly bool   `json:"readOnly,omitempty"`
}

// MachineState is what a machine's supervisor last saw.
type MachineState string

// The states of a machine.
const (
	MachineOff     MachineState = "off"
	MachineBooting MachineState = "booting"
	MachineUp      MachineState = "up"
)

// Machine is a server: a disk, a network interface and systemd as PID 1. Reboot and
// power cut keep the disk and lose /run, the network namespace and all processes.
type Machine struct {
	Name   string
	Rack   string
	V4, V6 netip.Addr

	rig    *Rig
	record machineRecord
}

// AddMachine makes a machine's disk and address without starting it. Idempotent by name.
func (r *Rig) AddMachine(ctx context.Context, cfg MachineConfig) (*Machine, error) {
	if !processName.MatchString(cfg.Name) || cfg.Name == "host" || cfg.Name == "router" {
		return nil, fmt.Errorf("add machine: name %q is not valid", cfg.Name)
	}
	if m, err := r.Machine(cfg.Name); err == nil {
		return m, nil
	}
	if cfg.VM && len(cfg.Binds) > 0 {
		return nil, fmt.Errorf("add machine %s: a virtual machine takes no binds", cfg.Name)
	}
	rec := machineRecord{MachineConfig: cfg, MAC: portMAC(r.id, cfg.Name).String(), MachineID: newMachineID()}
	if err := r.makeDisk(ctx, &rec); err != nil {
		return nil, fmt.Errorf("add machine %s: %w", cfg.Name, err)
	}
	err := r.update(func(s *state) error {
		if _, err := s.machine(cfg.Name); err == nil {
			return fmt.Errorf("add machine %s: added by another process meanwhile", cfg.Name)
		}
		rs, v4, v6, err := s.allocate(cfg.Rack)
		if err != nil {
			return err
		}
		rec.Rack, rec.V4, rec.V6 = rs.Name, v4, v6
		s.Machines = append(s.Machines, rec)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("add machine %s: %w", cfg.Name, err)
	}
	return r.machineOf(rec), nil
}

// makeDisk copies the root and gives it the machine's name. What a former try left
// half copied is removed first.
func (r *Rig) makeDisk(ctx context.Context, rec *machineRecord) error {
	dir := r.machineDir(rec.Name)
	if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755)); err != nil {
		return fmt.Errorf("make machine directory: %w", err)
	}
	if rec.VM {
		return r.makeVMDisk(ctx, dir)
	}
	base, err := EnsureRoot(ctx, r.snapshot().Root, r.progress)
	if err != nil {
		return err
	}
	root := filepath.Join(dir, "root")
	if err := r.tool(ctx, "disk-"+rec.Name, "cp", "-a", "--reflink=auto", base, root); err != nil {
		return fmt.Errorf("copy root: %w", err)
	}
	gw := ""
	if rs, err := r.snapshot().rack(rec.Rack); err == nil {
		gw = fmt.Sprintf("nameserver %s\n", rs.Gateway4)
	}
	for path, content := range map[string]string{
		"etc/hostname":    rec.Name + "\n",
		"etc/hosts":       "127.0.0.1 localhost\n127.0.1.1 " + rec.Name + "\n::1 localhost ip6-localhost ip6-loopback\n",
		"etc/resolv.conf": gw,
	} {
		if err := os.WriteFile(filepath.Join(root, path), []byte(content), 0o644); err != nil {
			return fmt.Errorf("configure disk: %w", err)
		}
	}
	return nil
}

// newMachineID is a random UUID for /etc/machine-id.
func newMachineID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b)
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return hex.EncodeToString(b)
}

// machineDir is where a machine's disk and console are.
func (r *Rig) machineDir(name string) string { return filepath.Join(r.dir, "machines", name) }

// machineOf makes a handle.
func (r *Rig) machineOf(rec machineRecord) *Machine {
	return &Machine{Name: rec.Name, Rack: rec.Rack, V4: rec.V4, V6: rec.V6, rig: r, record: rec}
}

// Machine finds a machine by name.
func (r *Rig) Machine(name string) (*Machine, error) {
	s, err := readState(r.dir)
	if err != nil {
		return nil, err
	}
	rec, err := s.machine(name)
	if err != nil {
		return nil, err
	}
	return r.machineOf(*rec), nil
}

// Machines lists the machines in the order they were added.
func (r *Rig) Machines() []*Machine {
	var ms []*Machine
	for _, rec := range r.snapshot().Machines {
		ms = append(ms, r.machineOf(rec))
	}
	return ms
}

// Virtual says that it is a virtual machine: about 50 times slower than a container, and
// without a Root.
func (m *Machine) Virtual() bool { return m.record.VM }

// Root is the path of the machine's root file system on the host.
func (m *Machine) Root() string { return filepath.Join(m.rig.machineDir(m.Name), "root") }

// ConsolePath is where the machine's console output goes, on the host.
func (m *Machine) ConsolePath() string { return filepath.Join(m.rig.machineDir(m.Name), "console.log") }

// Start powers the machine on and returns once it is powered, not yet booted.
// Starting a machine that is on does nothing.
func (m *Machine) Start(ctx context.Context) error {
	if err := m.ensureSupervisor(ctx); err != nil {
		return fmt.Errorf("start machine %s: %w", m.Name, err)
	}
	_, err := m.ask(ctx, opStart)
	return err
}

// ensureSupervisor starts the machine's supervisor unless it runs.
func (m *Machine) ensureSupervisor(ctx context.Context) error {
	_, err := m.rig.StartProcess(ctx, ProcessSpec{
		Name: supervisorName(m.Name), Path: "/proc/self/exe",
		Argv: []string{arg0Supervise, m.rig.dir, m.Name}, Dir: "/",
	})
	if err != nil && !errors.Is(err, ErrRunning) {
		return err
	}
	// It listens a moment after it has started.
	return poll(ctx, 2*time.Millisecond, func() (bool, error) {
		_, err := m.ask(ctx, opStatus)
		if err == nil {
			return true, nil
		}
		p, perr := m.rig.Process(supervisorName(m.Name))
		if perr != nil || !p.Running() {
			return false, fmt.Errorf("supervisor ended at once, see %s: %w", m.rig.processLog(supervisorName(m.Name)), err)
		}
		return false, nil
	})
}

// supervisorName is the process that supervises a machine.
func supervisorName(machine string) string { return "machine-" + machine }

// WaitBooted blocks until systemd says that it has finished booting.
func (m *Machine) WaitBooted(ctx context.Context) error {
	_, err := m.ask(ctx, opWaitBooted)
	return err
}

// Stop shuts the machine down cleanly and waits until it is off. A machine that does
// not go down in 90 s is killed, which is an error.
func (m *Machine) Stop(ctx context.Context) error { return m.askIfKnown(ctx, opStop) }

// Reboot reboots cleanly and returns once the machine has gone down and is booting
// again; then WaitBooted.
func (m *Machine) Reboot(ctx context.Context) error {
	_, err := m.ask(ctx, opReboot)
	return err
}

// PowerCut kills the machine at once, as pulling the plug does, and waits until it is off.
func (m *Machine) PowerCut(ctx context.Context) error { return m.askIfKnown(ctx, opPowerCut) }

// State asks the supervisor what the machine does, and the number of its current or
// last boot since it was first started, counted from 1.
func (m *Machine) State(ctx context.Context) (MachineState, int, error) {
	if !m.supervised() {
		return MachineOff, 0, nil
	}
	rep, err := m.ask(ctx, opStatus)
	return rep.State, rep.Boot, err
}

// supervised reports whether the machine's supervisor runs; without one it is off.
func (m *Machine) supervised() bool {
	p, err := m.rig.Process(supervisorName(m.Name))
	return err == nil && p.Running()
}

// askIfKnown asks the supervisor; a machine without one is off already.
func (m *Machine) askIfKnown(ctx context.Context, op string) error {
	if !m.supervised() {
		return nil
	}
	_, err := m.ask(ctx, op)
	return err
}

// Partition cuts the machine off the network silently: its link stays up, nothing
// passes. It lasts over reboots until Heal.
func (m *Machine) Partition(ctx context.Context) error { return m.setPartition(ctx, true) }

// Heal ends a partition and plugs the cable in.
func (m *Machine) Heal(ctx context.Context) error {
	return errors.Join(m.setPartition(ctx, false), m.SetLink(ctx, true))
}

// setPartition notes the wish and applies it to the port, if the machine has one now.
func (m *Machine) setPartition(_ context.Context, cut bool) error {
	err := m.rig.update(func(s *state) error {
		rec, err := s.machine(m.Name)
		if err != nil {
			return err
		}
		rec.Partitioned = cut
		return m.withPort(s, func(port string) error { return plugPort(port, !cut) })
	})
	if err != nil {
		return fmt.Errorf("partition machine %s (%v): %w", m.Name, cut, err)
	}
	return nil
}

// SetLink pulls (false) or plugs (true) the machine's cable: it sees its carrier go.
// A boot plugs it in again.
func (m *Machine) SetLink(_ context.Context, up bool) error {
	err := m.rig.update(func(s *state) error {
		return m.withPort(s, func(port string) error { return setLink(port, up) })
	})
	if err != nil {
		return fmt.Errorf("set link of machine %s: %w", m.Name, err)
	}
	return nil
}

// withPort calls do in the rack's namespace with the machine's port; a machine that is
// off has none.
func (m *Machine) withPort(s *state, do func(port string) error) error {
	rs, err := s.rack(m.Rack)
	if err != nil {
		return err
	}
	return inNetns(rs.NetnsPath, func() error {
		names, err := linkNames()
		if err != nil || !slices.Contains(names, portName(m.Name)) {
			return err
		}
		return do(portName(m.Name))
	})
}
