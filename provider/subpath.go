package provider

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// makeSubPaths makes the sub-paths of volumes that do not exist yet, with the volume's own
// mode, as a kubelet does. os.Root lets no symlink lead out of the volume, however the
// containers that share it change it meanwhile; the launcher resolves it once more.
func makeSubPaths(mounts []launchspec.Mount) error {
	for _, m := range mounts {
		if m.SubPath == "" || m.Kind != launchspec.MountBind {
			continue
		}
		if err := makeSubPath(m.Source, m.SubPath); err != nil {
			return fmt.Errorf("make subPath %q for mount %s: %w", m.SubPath, m.Target, err)
		}
	}
	return nil
}

func makeSubPath(volume, sub string) error {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(sub); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	at := ""
	for _, element := range strings.Split(path.Clean(sub), "/") {
		at = path.Join(at, element)
		switch err := root.Mkdir(at, 0o700); {
		case errors.Is(err, fs.ErrExist):
			continue
		case err != nil:
			return err
		}
		if err := root.Chmod(at, info.Mode()); err != nil { // beyond the umask, and setgid
			return err
		}
	}
	return nil
}
