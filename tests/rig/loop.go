package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// detachLoops detaches the host's loop devices whose files lie in one of the roots: a loop
// device belongs to no namespace, and outlives the machine that has made it. The kernel names
// a device's file as its machine saw it, so files are compared.
func detachLoops(roots ...string) error {
	names, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil || len(roots) == 0 {
		return err
	}
	var errs []error
	for _, name := range names {
		seen, err := os.ReadFile(name)
		if err != nil {
			continue // detached meanwhile
		}
		device := filepath.Join("/dev", filepath.Base(filepath.Dir(filepath.Dir(name))))
		errs = append(errs, detachLoop(device, strings.TrimSuffix(string(seen), "\n"), roots))
	}
	return errors.Join(errs...)
}

// detachLoop detaches one device if its file, which some machine names seen, is in a root. A
// device that is still open goes with its last user.
func detachLoop(device, seen string, roots []string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ignore(err, unix.ENOENT, unix.ENXIO)
	}
	defer unix.Close(fd)
	info, err := unix.IoctlLoopGetStatus64(fd)
	if err != nil {
		return ignore(err, unix.ENXIO)
	}
	for _, root := range roots {
		var st unix.Stat_t
		err := unix.Lstat(filepath.Join(root, seen), &st)
		if err != nil || st.Ino != info.Inode || devNumber(info.Device) != st.Dev {
			continue
		}
		if err := ignore(unix.IoctlSetInt(fd, unix.LOOP_CLR_FD, 0), unix.ENXIO); err != nil {
			return fmt.Errorf("detach %s from %s: %w", device, seen, err)
		}
	}
	return nil
}

// devNumber is a device number of the loop driver's (huge_encode_dev in the kernel) as stat(2)
// has it.
func devNumber(n uint64) uint64 {
	return unix.Mkdev(uint32(n>>8&0xfff), uint32(n&0xff|n>>12&0xfff00))
}

// ignore drops errors that are as good as none.
func ignore(err error, as ...error) error {
	for _, ok := range as {
		if errors.Is(err, ok) {
			return nil
		}
	}
	return err
}

// roots are the disks of all machines of the rig.
func (r *Rig) roots() []string {
	found, _ := filepath.Glob(filepath.Join(r.dir, "machines", "*", "root"))
	return found
}
