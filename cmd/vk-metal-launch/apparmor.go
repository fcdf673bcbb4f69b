//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// appArmorFiles are where a process says which profile its next execve is confined by: AppArmor's
// own since Linux 5.8, and the older one, shared with other modules.
var appArmorFiles = []string{"/proc/self/attr/apparmor/exec", "/proc/self/attr/exec"}

// openAppArmor opens that file in the host's own /proc, while we still see it: a volume on
// the container's /proc cannot stand in for it (CVE-2019-16884, CVE-2023-28642). It returns
// nil where the container has no profile.
func openAppArmor(spec *launchspec.Spec) (*os.File, error) {
	if spec.AppArmor == "" {
		return nil, nil
	}
	var err error
	for _, name := range appArmorFiles {
		var file *os.File
		if file, err = os.OpenFile(name, os.O_WRONLY, 0); err == nil {
			if !isProc(int(file.Fd())) {
				file.Close()
				return nil, fmt.Errorf("confine container: %s is not the kernel's", name)
			}
			return file, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return nil, fmt.Errorf("confine container by AppArmor profile %q: %w", spec.AppArmor, err)
}

// confine makes the next execve enter the profile. Only the thread that opened the file may
// write to it: it is the main one.
func confine(file *os.File, profile string) error {
	if file == nil {
		return nil
	}
	defer file.Close()
	if _, err := unix.Write(int(file.Fd()), []byte("exec "+profile)); err != nil {
		return fmt.Errorf("confine container by AppArmor profile %q: %w", profile, err)
	}
	return nil
}
