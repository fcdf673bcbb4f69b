package rig

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrNotFound is returned (wrapped) for a rig, machine, endpoint or process that
// the rig's state does not know.
var ErrNotFound = errors.New("not found in the rig")

// Config says what rig to make.
type Config struct {
	// Dir is the state directory: absolute, on a real file system (not an
	// overlay, not tmpfs), made when missing.
	Dir string
	// Racks are the networks, joined by one router. None means one rack, "rack-0".
	Racks []RackConfig
	// Root is the recipe of the machines' root; the zero value is DefaultRoot().
	Root RootConfig
	// Progress gets a line per long step; nil is silence.
	Progress io.Writer
}

// RackConfig is one rack: a bridge in a network namespace of its own.
type RackConfig struct {
	Name string
	// V4 and V6 are the rack's subnets. The zero value picks free private ones:
	// a /24 that no route of the host covers and a /64 of a random ULA prefix.
	V4, V6 netip.Prefix
}

// Rig is a handle on a rig; all its state is in the directory, so handles in
// several processes may be used at once.
type Rig struct {
	dir      string
	id       string
	progress io.Writer
}

// Up makes the rig of cfg.Dir, or completes or reopens the one that is there (which
// keeps its racks and root). It makes the racks, the router and the host's link into
// the first rack, and no machines. After a reboot of the host it makes them anew.
func Up(_ context.Context, cfg Config) (*Rig, error) {
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	r := &Rig{dir: cfg.Dir, progress: cfg.Progress}
	if err := r.create(cfg); err != nil {
		return nil, fmt.Errorf("make rig in %s: %w", cfg.Dir, err)
	}
	if err := r.bringUp(); err != nil {
		return nil, fmt.Errorf("bring up rig in %s: %w", cfg.Dir, err)
	}
	return r, nil
}

// checkDir makes the state directory and refuses what machines cannot live on.
func checkDir(dir string) error {
	if !filepath.IsAbs(dir) {
		return fmt.Errorf("make rig: directory %q is not absolute", dir)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make rig: %w", err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("inspect file system of %s: %w", dir, err)
	}
	switch fs.Type {
	case unix.OVERLAYFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return fmt.Errorf("make rig: %s lies on an overlay or in memory; machines need a real file system such as ext4", dir)
	}
	return nil
}

// create writes the first state, if there is none.
func (r *Rig) create(cfg Config) error {
	unlock, err := lockPath(filepath.Join(r.dir, lockFile))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := readState(r.dir)
	if errors.Is(err, ErrNotFound) {
		s = &state{Version: stateVersion, ID: newID(), Root: cfg.Root}
		if s.Root.Suite == "" {
			s.Root = DefaultRoot()
		}
		s.Racks = []rackState{}
		for _, c := range cfg.Racks {
			s.Racks = append(s.Racks, rackState{Rack: Rack{Name: c.Name, V4: c.V4, V6: c.V6}})
		}
		err = writeState(r.dir, s)
	}
	if err != nil {
		return err
	}
	r.id = s.ID
	return nil
}

// bringUp makes the network unless it is there already.
func (r *Rig) bringUp() error {
	if err := os.MkdirAll(CacheDir(), 0o755); err != nil {
		return fmt.Errorf("make cache: %w", err)
	}
	unlock, err := lockPath(filepath.Join(CacheDir(), "subnets.lock"))
	if err != nil {
		return err
	}
	defer unlock()
	return r.update(func(s *state) error {
		if s.NetReady && s.BootID == hostBootID() {
			return nil
		}
		if err := planRacks(s); err != nil {
			return err
		}
		s.BootID = hostBootID()
		if s.Sysctls, err = joinHost(r.dir, s.ID); err != nil {
			return err
		}
		if err := writeState(r.dir, s); err != nil {
			return err
		}
		if err := makeRoom(); err != nil {
			return err
		}
		if err := r.buildNetwork(s); err != nil {
			return err
		}
		s.NetReady = true
		return nil
	})
}

// planRacks gives the racks of a new rig their subnets.
func planRacks(s *state) error {
	if len(s.Racks) > 0 && s.Racks[0].Next > 0 {
		return nil
	}
	cfgs := make([]RackConfig, 0, 1)
	for _, rs := range s.Racks {
		cfgs = append(cfgs, RackConfig{Name: rs.Name, V4: rs.V4, V6: rs.V6})
	}
	if len(cfgs) == 0 {
		cfgs = append(cfgs, RackConfig{})
	}
	for _, c := range cfgs {
		if c.Name != "" && !processName.MatchString(c.Name) {
			return fmt.Errorf("rack name %q is not valid", c.Name)
		}
	}
	racks, err := chooseSubnets(s.ID, cfgs)
	s.Racks = racks
	return err
}

// Open reopens the rig of a state directory; ErrNotFound when there is none.
func Open(dir string) (*Rig, error) {
	s, err := readState(dir)
	if err != nil {
		return nil, err
	}
	return &Rig{dir: dir, id: s.ID}, nil
}

// Dir is the state directory.
func (r *Rig) Dir() string { return r.dir }

// ID is a short name, unique on the host, that prefixes everything made outside Dir.
func (r *Rig) ID() string { return r.id }

// Racks lists the racks in the order they were configured.
func (r *Rig) Racks() []Rack {
	var racks []Rack
	for _, rs := range r.snapshot().Racks {
		racks = append(racks, rs.Rack)
	}
	return racks
}

// Host is the host's own place in the first rack: its NetnsPath is empty, its
// addresses are on the link that leads from the root namespace into the rack.
// The host reaches every rack; nothing in the rig is forwarded beyond the host.
func (r *Rig) Host() Endpoint { return r.snapshot().Host }

// Router is the namespace that joins the racks; its addresses are those in the first rack.
func (r *Rig) Router() Endpoint { return r.snapshot().Router }

// snapshot is the state now; of a rig that has been taken down it is empty.
func (r *Rig) snapshot() *state {
	s, err := readState(r.dir)
	if err != nil {
		return &state{}
	}
	return s
}
