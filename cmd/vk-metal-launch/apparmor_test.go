//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

func TestAppArmorIsAskedOfTheKernelOnly(t *testing.T) {
	if file, err := openAppArmor(&launchspec.Spec{}); file != nil || err != nil {
		t.Errorf("without a profile: %v, %v", file, err)
	}
	spec := &launchspec.Spec{AppArmor: "p"}
	real := appArmorFiles
	t.Cleanup(func() { appArmorFiles = real })

	forged := filepath.Join(t.TempDir(), "exec")
	if err := os.WriteFile(forged, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	appArmorFiles = []string{forged}
	if _, err := openAppArmor(spec); err == nil || !strings.Contains(err.Error(), "is not the kernel's") {
		t.Errorf("a forged file: %v", err)
	}
	appArmorFiles = []string{forged + ".none", forged + ".neither"}
	if _, err := openAppArmor(spec); err == nil || !strings.Contains(err.Error(), `AppArmor profile "p"`) {
		t.Errorf("a host without AppArmor: %v", err)
	}
	appArmorFiles = []string{forged + ".none", "/proc/self/comm"} // the second one is taken
	file, err := openAppArmor(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := confine(file, "p"); err != nil {
		t.Fatal(err)
	}
	if comm, err := os.ReadFile("/proc/self/comm"); err != nil || string(comm) != "exec p\n" {
		t.Errorf("the kernel was told %q, %v", comm, err)
	}
}
