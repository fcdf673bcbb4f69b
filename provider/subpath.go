package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/stuck"
)

// subPathPatience bounds the look at a volume, whose server may be away. A pod's end waits for it.
const subPathPatience = 30 * time.Second

// subPaths is makeSubPaths for as long as subPathPatience.
func (w *worker) subPaths(ctx context.Context, container string, mounts []launchspec.Mount) error {
	if !slices.ContainsFunc(mounts, hasSubPath) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, subPathPatience)
	defer cancel()
	_, err := stuck.Do(ctx, &w.p.calls, string(w.uid)+"/"+container, func() (struct{}, error) {
		return struct{}{}, makeSubPaths(mounts)
	}, func(struct{}) {})
	return err
}

// makeSubPaths makes the sub-paths of volumes that do not exist yet, with the volume's own
// mode, as a kubelet does. os.Root lets no symlink lead out of the volume, however the
// containers that share it change it meanwhile; the launcher resolves it once more.
func makeSubPaths(mounts []launchspec.Mount) error {
	for _, m := range mounts {
		if !hasSubPath(m) {
			continue
		}
		if err := makeSubPath(m.Source, m.SubPath); err != nil {
			return fmt.Errorf("make subPath %q for mount %s: %w", m.SubPath, m.Target, err)
		}
	}
	return nil
}

func hasSubPath(m launchspec.Mount) bool { return m.SubPath != "" && m.Kind == launchspec.MountBind }

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
