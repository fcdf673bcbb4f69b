//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// Where a thread says which SELinux label its next execve has, and the keys that it makes
// (proc_pid_attr(5)).
const (
	labelOfExec = "/proc/thread-self/attr/exec"
	labelOfKeys = "/proc/thread-self/attr/keycreate"
)

// contextOption labels everything in a file system that is mounted with it (mount(8)). The label,
// which has commas, is the last of the options.
const contextOption = ",context="

// labelled adds a label, if there is one, to options of newFS.
func labelled(options, label string) string {
	if label == "" {
		return options
	}
	return options + contextOption + label
}

// securityFiles are what security modules read, nil for what the container does not ask for.
type securityFiles struct{ appArmor, exec, keyCreate *os.File }

// openLSM opens them in the host's own /proc, as openAppArmor does and why.
func openLSM(spec *launchspec.Spec) (files securityFiles, err error) {
	if files.appArmor, err = openAppArmor(spec); err != nil || spec.SELinux == "" {
		return files, err
	}
	if files.exec, err = openLabelFile(labelOfExec); err != nil {
		return files, fmt.Errorf("label container %q: %w", spec.SELinux, err)
	}
	if files.keyCreate, err = openLabelFile(labelOfKeys); err != nil {
		return files, fmt.Errorf("label keyring of container %q: %w", spec.SELinux, err)
	}
	return files, nil
}

func openLabelFile(name string) (*os.File, error) {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	if !isProc(int(file.Fd())) {
		file.Close()
		return nil, fmt.Errorf("%s is not the kernel's", name)
	}
	return file, nil
}

// relabel makes the next execve enter the label. Only the thread that opened the file may write
// to it.
func relabel(file *os.File, label string) error {
	if file == nil {
		return nil
	}
	defer file.Close()
	if _, err := unix.Write(int(file.Fd()), []byte(label)); err != nil {
		return fmt.Errorf("label container %q: %w", label, err)
	}
	return nil
}

// joinLabelledKeyring replaces the session keyring, which has systemd's label, by one that the
// container may use. It is root's, whose quota of keys every container has room in.
func joinLabelledKeyring(file *os.File, label string) error {
	if file == nil {
		return nil
	}
	defer file.Close()
	if _, err := unix.Write(int(file.Fd()), []byte(label)); err != nil {
		return fmt.Errorf("label keyring of container %q: %w", label, err)
	}
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) {
		return fmt.Errorf("make session keyring: %w", err)
	}
	return nil
}

// labelMqueue labels /dev/mqueue, whose file system takes no label when it is mounted. In a user
// namespace it is not ours to label: its owner is the host's root.
func labelMqueue(root rootDir, spec *launchspec.Spec) error {
	if spec.MountLabel == "" || spec.Namespaces.User != nil {
		return nil
	}
	fd, err := root.open("/dev/mqueue", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("open /dev/mqueue: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.Fsetxattr(fd, "security.selinux", []byte(spec.MountLabel), 0); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("label /dev/mqueue %q: %w", spec.MountLabel, err)
	}
	return nil
}

// orphaned ends a command that would outlive us: execve with another label takes the signal away
// that the kernel was to send (selinux_bprm_committing_creds). Without a label nothing is left to do.
func (r *execRequest) orphaned(pid int) {
	if r.spec.SELinux != "" {
		_ = unix.Kill(pid, unix.SIGKILL) // our own child, not waited for yet
	}
}
