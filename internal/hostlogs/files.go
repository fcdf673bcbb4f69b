package hostlogs

import (
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many links are followed, as the kernel does.
const maxLinks = 40

// files are those of one directory. No link leads out of it, but absolute ones that stay in it are
// followed: /var/log/containers has such into /var/log/pods.
type files struct {
	dir  string
	root *os.Root
}

// Open implements fs.FS. Nobody waits for what is neither a file nor a directory.
func (f files) Open(name string) (fs.File, error) {
	for range maxLinks {
		target, err := f.root.Readlink(name)
		if err != nil || !path.IsAbs(target) {
			break
		}
		inside, ok := strings.CutPrefix(path.Clean(target), f.dir+"/")
		if !ok {
			break
		}
		name = inside
	}
	file, err := f.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() && !info.IsDir() {
		file.Close()
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrPermission}
	}
	return file, nil
}

// nothing is a directory that is not there.
type nothing struct{}

// Open implements fs.FS.
func (nothing) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}
