package diskuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrNoQuota says that the file system counts nothing by project.
var ErrNoQuota = errors.New("its file system has no project quota")

// projects begin here, out of the way of those that administrators give out, and there are as
// many of them.
const projects = 1 << 30

// fsxattr is the kernel's struct fsxattr (linux/fs.h).
type fsxattr struct {
	Xflags, Extsize, Nextents, Project, Cowextsize uint32
	_                                              [8]byte
}

// quota is the kernel's struct if_dqblk (linux/quota.h); sizes in bytes.
type quota struct {
	_, _, Space, _, _, Inodes, _, _ uint64
	_                               uint32
}

const (
	getXattr       = 0x801c581f // FS_IOC_FSGETXATTR
	setXattr       = 0x401c5820 // FS_IOC_FSSETXATTR
	inheritProject = 0x200      // FS_XFLAG_PROJINHERIT
	getQuota       = 0x800007   // Q_GETQUOTA
	projectQuota   = 2          // PRJQUOTA
)

// Track has the file system count what a directory takes from now on: Measure then asks it. The
// directory has to be empty. Without project quota the error is ErrNoQuota. Whoever may change the
// project of files below (their owner, unless in a user namespace) can keep them from being
// counted.
//
// The number of the project is that of the directory's inode, which no other has as long as this one
// lives; nothing has to be remembered.
func Track(dir string) error {
	file, err := openDir(dir)
	if err != nil {
		return fmt.Errorf("count by project: %w", err)
	}
	defer file.Close()
	project, err := projectOf(file)
	if err != nil {
		return fmt.Errorf("count %s by project: %w", dir, err)
	}
	if used, err := askQuota(file, project); err != nil {
		return fmt.Errorf("count %s by project: %w", dir, err)
	} else if used.Inodes > 0 {
		return fmt.Errorf("count %s by project: %w: project %d has files already", dir, ErrNoQuota, project)
	}
	var attr fsxattr
	if err := ioctl(file, getXattr, &attr); err != nil {
		return fmt.Errorf("count %s by project: %w", dir, noQuota(err))
	}
	attr.Project, attr.Xflags = project, attr.Xflags|inheritProject
	if err := ioctl(file, setXattr, &attr); err != nil {
		return fmt.Errorf("count %s by project: %w", dir, noQuota(err))
	}
	return nil
}

// Tracks says why Track would not work for directories in dir, nil if it would.
func Tracks(dir string) error {
	tmp, err := os.MkdirTemp(dir, ".project-")
	if err != nil {
		return fmt.Errorf("count by project: %w", err)
	}
	defer os.Remove(tmp)
	return Track(tmp)
}

// tracked returns what a directory takes if the file system has counted that, false if it has not.
func tracked(ctx context.Context, dir string) (Usage, bool) {
	if ctx.Err() != nil {
		return Usage{}, false
	}
	file, err := openDir(dir)
	if err != nil {
		return Usage{}, false
	}
	defer file.Close()
	project, err := projectOf(file)
	if err != nil {
		return Usage{}, false
	}
	var attr fsxattr
	if err := ioctl(file, getXattr, &attr); err != nil || attr.Project != project || attr.Xflags&inheritProject == 0 {
		return Usage{}, false
	}
	used, err := askQuota(file, project)
	return used, err == nil
}

func openDir(dir string) (*os.File, error) {
	return os.OpenFile(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
}

// projectOf is the number that a directory's project has.
func projectOf(dir *os.File) (uint32, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		return 0, err
	}
	if st.Ino >= projects {
		return 0, fmt.Errorf("%w: inode %d is too large for its number", ErrNoQuota, st.Ino)
	}
	return projects + uint32(st.Ino), nil
}

// askQuota asks for what a project takes. One that has never had a file takes nothing.
func askQuota(dir *os.File, project uint32) (Usage, error) {
	var q quota
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, dir.Fd(), getQuota<<8|projectQuota, uintptr(project), uintptr(unsafe.Pointer(&q)), 0, 0)
	switch {
	case errno == unix.ENOENT: // XFS
		return Usage{}, nil
	case errno != 0:
		return Usage{}, noQuota(errno)
	}
	return Usage{Bytes: int64(q.Space), Inodes: int64(q.Inodes)}, nil
}

// noQuota tells kernels and file systems that cannot from those that fail.
func noQuota(err error) error {
	for _, cannot := range []error{unix.ESRCH, unix.ENOSYS, unix.ENOTTY, unix.EOPNOTSUPP, unix.ENOTBLK, unix.EINVAL, unix.ENODEV} {
		if errors.Is(err, cannot) {
			return fmt.Errorf("%w: %w", ErrNoQuota, err)
		}
	}
	return err
}

func ioctl(file *os.File, request uintptr, attr *fsxattr) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), request, uintptr(unsafe.Pointer(attr))); errno != 0 {
		return errno
	}
	return nil
}
