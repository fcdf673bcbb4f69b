package images

import (
	"io/fs"
	"path/filepath"
	"syscall"
)

// diskUsage is the space that a tree takes, hard links counted once. It is an estimate for
// reports: what cannot be read counts nothing.
func diskUsage(dir string) int64 {
	type inode struct{ dev, ino uint64 }
	seen := map[inode]bool{}
	var total int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // counts nothing
		}
		info, err := d.Info()
		if err != nil {
			return nil //nolint:nilerr // counts nothing
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[inode{st.Dev, st.Ino}] {
			return nil
		}
		if st.Nlink > 1 {
			seen[inode{st.Dev, st.Ino}] = true
		}
		total += st.Blocks * 512
		return nil
	})
	return total
}
