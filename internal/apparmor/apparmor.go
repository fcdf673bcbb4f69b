//go:build linux

// Package apparmor says what AppArmor the host has, and loads the default profile of
// containers into the kernel. It must not know pods; the launcher does the confining.
package apparmor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"github.com/moby/profiles/apparmor"
)

// DefaultProfile is the name of the default profile, moby's published one.
const DefaultProfile = "vk-metal-default"

// ErrUnsupported says that a profile cannot be loaded on this host.
var ErrUnsupported = errors.New("apparmor is not supported")

// Options of New; the zero value is the host's.
type Options struct {
	// Sys is where sysfs is mounted; empty is /sys.
	Sys string
	// Install compiles and loads the default profile under a name; nil runs apparmor_parser.
	Install func(name string) error
}

// Host is the AppArmor of a host.
type Host struct {
	sys     string
	install func(string) error
	mu      sync.Mutex // one loads at a time
}

// New makes a Host; it reads nothing yet.
func New(options Options) *Host {
	h := &Host{sys: options.Sys, install: options.Install}
	if h.sys == "" {
		h.sys = "/sys"
	}
	if h.install == nil {
		h.install = parse
	}
	return h
}

// parse needs apparmor_parser: the kernel takes compiled policy only.
func parse(name string) error {
	if _, err := exec.LookPath("apparmor_parser"); err != nil {
		return fmt.Errorf("%w: apparmor_parser is not installed", ErrUnsupported)
	}
	return apparmor.InstallDefault(name)
}

// Enabled says whether the kernel enforces AppArmor and lets us see its profiles, which it
// does not inside a container.
func (h *Host) Enabled() bool {
	enabled, err := os.ReadFile(filepath.Join(h.sys, "module/apparmor/parameters/enabled"))
	if err != nil || !strings.HasPrefix(string(enabled), "Y") {
		return false
	}
	_, err = os.Stat(h.profiles())
	return err == nil
}

func (h *Host) profiles() string { return filepath.Join(h.sys, "kernel/security/apparmor/profiles") }

// Loaded says whether the kernel has a profile of that name.
func (h *Host) Loaded(name string) (bool, error) {
	data, err := os.ReadFile(h.profiles())
	if errors.Is(err, fs.ErrNotExist) {
		return false, ErrUnsupported
	}
	if err != nil {
		return false, fmt.Errorf("list AppArmor profiles: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		// A line is "name (mode)"; names may have spaces.
		if at := strings.LastIndex(line, " ("); at >= 0 && line[:at] == name {
			return true, nil
		}
	}
	return false, nil
}

// EnsureDefault returns the name of the default profile, loaded. It looks every time: a
// reload of the host's own policy may have taken it away.
func (h *Host) EnsureDefault() (string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	loaded, err := h.Loaded(DefaultProfile)
	if err != nil || loaded {
		return DefaultProfile, err
	}
	if err := h.install(DefaultProfile); err != nil {
		return "", fmt.Errorf("load AppArmor profile %s: %w", DefaultProfile, err)
	}
	return DefaultProfile, nil
}
