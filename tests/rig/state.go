package rig

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// state is everything a rig remembers, as Dir/rig.json. What the rig makes outside
// of Dir carries ID in its name, so ID and the old sysctl values are all that Down needs.
type state struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	// BootID is the host's boot in which the kernel objects were made.
	BootID    string            `json:"bootID"`
	Root      RootConfig        `json:"root"`
	Racks     []rackState       `json:"racks,omitempty"`
	NetReady  bool              `json:"netReady,omitempty"`
	Host      Endpoint          `json:"host"`
	Router    Endpoint          `json:"router"`
	Endpoints []Endpoint        `json:"endpoints,omitempty"`
	Machines  []machineRecord   `json:"machines,omitempty"`
	Processes []processRecord   `json:"processes,omitempty"`
	Sysctls   map[string]string `json:"sysctls,omitempty"`
}

// rackState is a rack and the next free host number in its subnets.
type rackState struct {
	Rack
	Next uint32 `json:"next"`
}

const (
	stateVersion = 1
	stateFile    = "rig.json"
	lockFile     = "rig.lock"
	// firstHost is the host number of a rack's first endpoint or machine.
	firstHost = 10
)

// machineRecord is a machine as the state keeps it.
type machineRecord struct {
	MachineConfig
	V4          netip.Addr `json:"v4"`
	V6          netip.Addr `json:"v6"`
	MAC         string     `json:"mac"`
	MachineID   string     `json:"machineID"`
	Partitioned bool       `json:"partitioned,omitempty"`
}

// newID returns a name prefix no other rig has.
func newID() string {
	b := make([]byte, 3)
	_, _ = rand.Read(b) // never fails, by contract of crypto/rand
	return "vk" + hex.EncodeToString(b)
}

// hostBootID is the kernel's random identity of this boot.
func hostBootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// lockPath takes an exclusive lock on a file, which it makes, until the returned
// function is called or the process ends.
func lockPath(path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open lock %s: %w", path, err)
	}
	if err := flock(f); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return func() { _ = f.Close() }, nil
}

// Reserve keeps other runs from a state directory until release is called or this process
// ends, however it ends: what one run makes there another would take over or remove. That it is
// taken is an error at once.
func Reserve(dir string) (release func(), err error) {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return nil, fmt.Errorf("reserve %s: %w", dir, err)
	}
	f, err := os.OpenFile(filepath.Clean(dir)+".lock", os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("reserve %s: %w", dir, err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		err = errors.New("another run uses it: wait for its end, or work in another directory")
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("reserve %s: %w", dir, err), f.Close())
	}
	return func() { _ = f.Close() }, nil
}

// flock takes the exclusive lock, over interruptions.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// readState loads the state of dir; ErrNotFound when there is none.
func readState(dir string) (*state, error) {
	b, err := os.ReadFile(filepath.Join(dir, stateFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open rig %s: %w", dir, ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open rig %s: %w", dir, err)
	}
	s := &state{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("parse %s: %w", filepath.Join(dir, stateFile), err)
	}
	if s.Version != stateVersion || s.ID == "" {
		return nil, fmt.Errorf("parse %s: version %d, id %q: not a rig of this version", filepath.Join(dir, stateFile), s.Version, s.ID)
	}
	return s, nil
}

// writeState replaces the state of dir, durably.
func writeState(dir string, s *state) error {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode rig state: %w", err)
	}
	return writeFileSync(filepath.Join(dir, stateFile), append(b, '\n'), 0o644)
}

// writeFileSync replaces a file so that a crash leaves the old or the new content.
func writeFileSync(path string, data []byte, perm fs.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(tmp.Name()) // gone after the rename
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(perm), tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// update changes the state under the rig's lock. When change fails nothing is written.
func (r *Rig) update(change func(*state) error) error {
	unlock, err := lockPath(filepath.Join(r.dir, lockFile))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readState(r.dir)
	if err != nil {
		return err
	}
	if err := change(s); err != nil {
		return err
	}
	return writeState(r.dir, s)
}

// allocate takes the next addresses of a rack ("" is the first).
func (s *state) allocate(rack string) (*rackState, netip.Addr, netip.Addr, error) {
	rs, err := s.rack(rack)
	if err != nil {
		return nil, netip.Addr{}, netip.Addr{}, err
	}
	n := rs.Next
	v4, v6 := nthAddr(rs.V4, n), nthAddr(rs.V6, n)
	if !rs.V4.Contains(v4) || !rs.V4.Contains(v4.Next()) || !rs.V6.Contains(v6) {
		return nil, netip.Addr{}, netip.Addr{}, fmt.Errorf("allocate an address in %s: %s is full", rs.Name, rs.V4)
	}
	rs.Next++
	return rs, v4, v6, nil
}

// rack finds a rack's state; "" is the first.
func (s *state) rack(name string) (*rackState, error) {
	for i := range s.Racks {
		if name == "" || s.Racks[i].Name == name {
			return &s.Racks[i], nil
		}
	}
	return nil, fmt.Errorf("find rack %q: %w", name, ErrNotFound)
}

// machine finds a machine's record.
func (s *state) machine(name string) (*machineRecord, error) {
	for i := range s.Machines {
		if s.Machines[i].Name == name {
			return &s.Machines[i], nil
		}
	}
	return nil, fmt.Errorf("find machine %q: %w", name, ErrNotFound)
}

// nthAddr is the address n above the prefix's first.
func nthAddr(p netip.Prefix, n uint32) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint32(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	a, _ := netip.AddrFromSlice(b) // 4 or 16 bytes by construction
	return a
}
