//go:build linux

package apparmor

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// fakeHost is a sysfs with AppArmor in it, as far as it is read.
func fakeHost(t *testing.T, enabled, profiles string) (*Host, *[]string) {
	t.Helper()
	sys := t.TempDir()
	for name, content := range map[string]string{"module/apparmor/parameters/enabled": enabled, "kernel/security/apparmor/profiles": profiles} {
		if content == "" {
			continue
		}
		path := filepath.Join(sys, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	var installed []string
	return New(Options{Sys: sys, Install: func(name string) error {
		installed = append(installed, name)
		return os.WriteFile(filepath.Join(sys, "kernel/security/apparmor/profiles"), []byte(profiles+name+" (enforce)\n"), 0o644)
	}}), &installed
}

func TestEnabled(t *testing.T) {
	for _, test := range []struct {
		enabled, profiles string
		want              bool
	}{
		{"", "", false},
		{"N\n", "x (enforce)\n", false},
		{"Y\n", "", false}, // securityfs cannot be seen
		{"Y\n", "x (enforce)\n", true},
	} {
		h, _ := fakeHost(t, test.enabled, test.profiles)
		if got := h.Enabled(); got != test.want {
			t.Errorf("%q, %q: %v", test.enabled, test.profiles, got)
		}
	}
}

func TestLoaded(t *testing.T) {
	h, _ := fakeHost(t, "Y\n", "docker-default (enforce)\n/usr/bin/man (complain)\nwith a space (enforce)\n")
	for name, want := range map[string]bool{
		"docker-default": true, "/usr/bin/man": true, "with a space": true, "docker": false, "with": false, "": false, "docker-default (enforce)": false,
	} {
		if got, err := h.Loaded(name); err != nil || got != want {
			t.Errorf("%q: %v, %v", name, got, err)
		}
	}
	h, _ = fakeHost(t, "Y\n", "")
	if _, err := h.Loaded("x"); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without securityfs: %v", err)
	}
}

func TestTheDefaultProfileIsLoadedOnceAndAgainWhenItWent(t *testing.T) {
	h, installed := fakeHost(t, "Y\n", "x (enforce)\n")
	for range 3 {
		if name, err := h.EnsureDefault(); err != nil || name != DefaultProfile {
			t.Fatalf("%q, %v", name, err)
		}
	}
	if len(*installed) != 1 {
		t.Errorf("loaded %d times", len(*installed))
	}
	if err := os.WriteFile(h.profiles(), []byte("x (enforce)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.EnsureDefault(); err != nil || len(*installed) != 2 {
		t.Errorf("after it went: loaded %d times, %v", len(*installed), err)
	}
	h.install = func(string) error { return ErrUnsupported }
	if err := os.WriteFile(h.profiles(), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := h.EnsureDefault(); !errors.Is(err, ErrUnsupported) {
		t.Errorf("without a parser: %v", err)
	}
}
