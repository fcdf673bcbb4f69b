package systemd

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// cgroupVersion is what the host's controllers are on.
type cgroupVersion int

const (
	cgroupV1 cgroupVersion = 1 // also hybrid: controllers on v1
	cgroupV2 cgroupVersion = 2
)

// CgroupVersion is 2 where the host's controllers are on cgroup v2, or else 1, hybrid included.
func CgroupVersion() (int, error) {
	version, err := detectCgroup()
	return int(version), err
}

const cgroupMount = "/sys/fs/cgroup"

func detectCgroup() (cgroupVersion, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupMount, &st); err != nil {
		return 0, fmt.Errorf("look at %s: %w", cgroupMount, err)
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return cgroupV2, nil
	}
	return cgroupV1, nil
}
