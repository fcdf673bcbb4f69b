package volumes

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"
)

// The kubelet's names: ..data is a symlink to a directory named by time, what containers see are
// symlinks through ..data, so one rename changes every file at once.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

const (
	maxPath     = 4096
	maxFileName = 255
)

// writer brings one volume's directory to a payload. It works through os.Root: whatever a
// container managed to put there, nothing outside is touched.
type writer struct {
	dir     string
	fsGroup *int64
	nested  []string // directories that other volumes are mounted on
	labels  Labels   // nil without SELinux
}

// populated says whether a volume was written completely once.
func populated(dir string) bool {
	st, err := os.Stat(path.Join(dir, dataLink))
	return err == nil && st.IsDir()
}

// write does nothing where the files are as wanted. A crash at any point leaves the old or the
// new files, and the next write tidies up.
func (w writer) write(files payload) error {
	files, err := checked(files)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(w.dir, 0o750); err != nil {
		return err
	}
	root, err := os.OpenRoot(w.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	current, _ := root.Readlink(dataLink)
	if current == "" { // new; later the mode may have the fsGroup's bits
		if err := root.Chmod(".", 0o777); err != nil {
			return err
		}
	}
	if !w.same(root, current, files) {
		if current, err = w.publish(root, files); err != nil {
			return err
		}
	}
	if err := w.links(root, files); err != nil {
		return err
	}
	for _, dir := range w.nested {
		if err := root.MkdirAll(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	if err := w.share(root, "."); err != nil {
		return err
	}
	return w.tidy(root, current)
}

// checked refuses paths that do not stay below the volume or would hide the writer's own names.
func checked(files payload) (payload, error) {
	out := make(payload, len(files))
	for p, f := range files {
		if err := checkPath(p); err != nil {
			return nil, err
		}
		out[path.Clean(p)] = f
	}
	return out, nil
}

func checkPath(p string) error {
	switch {
	case p == "" || path.Clean(p) == ".":
		return fmt.Errorf("invalid path: must not be empty: %q", p)
	case path.IsAbs(p):
		return fmt.Errorf("invalid path: must be relative path: %s", p)
	case len(p) > maxPath:
		return fmt.Errorf("invalid path: must be less than or equal to %d characters", maxPath)
	case strings.ContainsRune(p, 0):
		return fmt.Errorf("invalid path: must not contain NUL: %q", p)
	}
	for _, item := range strings.Split(p, "/") {
		if item == ".." {
			return fmt.Errorf("invalid path: must not contain '..': %s", p)
		}
		if len(item) > maxFileName {
			return fmt.Errorf("invalid path: filenames must be less than or equal to %d characters", maxFileName)
		}
	}
	if strings.HasPrefix(path.Clean(p), "..") {
		return fmt.Errorf("invalid path: must not start with '..': %s", p)
	}
	return nil
}

// same says whether the current directory holds exactly these files.
func (w writer) same(root *os.Root, current string, files payload) bool {
	if current == "" {
		return false
	}
	have := 0
	err := fs.WalkDir(root.FS(), current, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		f, ok := files[strings.TrimPrefix(p, current+"/")]
		if !ok || !d.Type().IsRegular() {
			return fs.ErrInvalid
		}
		data, err := root.ReadFile(p)
		if err != nil || !bytes.Equal(data, f.data) {
			return errors.Join(fs.ErrInvalid, err)
		}
		have++
		return nil
	})
	return err == nil && have == len(files)
}

// publish writes the files into a new directory and swaps ..data.
func (w writer) publish(root *os.Root, files payload) (name string, err error) {
	name, err = newDir(root)
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, root.RemoveAll(name))
		}
	}()
	for _, p := range slices.Sorted(maps.Keys(files)) {
		if err := writeFile(root, path.Join(name, p), files[p]); err != nil {
			return "", err
		}
	}
	if err := w.share(root, name); err != nil {
		return "", err
	}
	if err := w.label(name); err != nil {
		return "", err
	}
	if err := root.RemoveAll(newDataLink); err != nil {
		return "", err
	}
	if err := root.Symlink(name, newDataLink); err != nil {
		return "", err
	}
	return name, root.Rename(newDataLink, dataLink)
}

func newDir(root *os.Root) (string, error) {
	for {
		now := time.Now().UTC()
		name := now.Format("..2006_01_02_15_04_05.") + fmt.Sprintf("%09d", now.Nanosecond())
		err := root.Mkdir(name, 0o755)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		if err != nil {
			return "", err
		}
		return name, root.Chmod(name, 0o755)
	}
}

// writeFile writes a new file with exactly its mode, whatever the umask.
func writeFile(root *os.Root, p string, f file) error {
	if err := makeDirs(root, path.Dir(p)); err != nil {
		return err
	}
	h, err := root.OpenFile(p, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.Write(f.data); err != nil {
		return err
	}
	if f.uid != nil {
		if err := h.Chown(int(*f.uid), -1); err != nil {
			return err
		}
	}
	if err := h.Chmod(fileMode(f.mode)); err != nil {
		return err
	}
	return h.Close()
}

// makeDirs makes the directories of nested paths, 0755 whatever the umask.
func makeDirs(root *os.Root, dir string) error {
	if st, err := root.Lstat(dir); err == nil && st.IsDir() {
		return nil
	}
	if err := makeDirs(root, path.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, 0o755); err != nil {
		return err
	}
	return root.Chmod(dir, 0o755)
}

// fileMode turns the API's mode (0..0777, setuid bits possible) into Go's.
func fileMode(mode int32) fs.FileMode {
	m := fs.FileMode(mode) & fs.ModePerm //nolint:gosec // masked
	if mode&0o4000 != 0 {
		m |= fs.ModeSetuid
	}
	if mode&0o2000 != 0 {
		m |= fs.ModeSetgid
	}
	if mode&0o1000 != 0 {
		m |= fs.ModeSticky
	}
	return m
}

// links makes the symlinks that containers see and removes those of files that are gone.
func (w writer) links(root *os.Root, files payload) error {
	wanted := map[string]bool{}
	for p := range files {
		first, _, _ := strings.Cut(p, "/")
		wanted[first] = true
	}
	for name := range wanted {
		target := path.Join(dataLink, name)
		if have, err := root.Readlink(name); err == nil && have == target {
			continue
		}
		if err := root.RemoveAll(name); err != nil {
			return err
		}
		if err := root.Symlink(target, name); err != nil {
			return err
		}
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		target, err := root.Readlink(e.Name())
		if err != nil || e.Name() == dataLink || wanted[e.Name()] || target != path.Join(dataLink, e.Name()) {
			continue
		}
		if err := root.Remove(e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// tidy removes the directories of earlier versions, of crashed writes too.
func (w writer) tidy(root *os.Root, current string) error {
	entries, err := fs.ReadDir(root.FS(), ".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if name := e.Name(); strings.HasPrefix(name, "..2") && name != current || name == newDataLink {
			if err := root.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// label gives new files the volume's label: their own would be the agent's, which containers of other
// pods may read.
func (w writer) label(name string) error {
	if w.labels == nil {
		return nil
	}
	label, err := w.labels.Label(w.dir)
	if err != nil || label == "" {
		return err
	}
	return w.labels.Relabel(path.Join(w.dir, name), label, true)
}

// share gives the fsGroup read access to everything below p, as the kubelet does for read-only
// volumes: group r, x and setgid on directories.
func (w writer) share(root *os.Root, p string) error {
	if w.fsGroup == nil {
		return nil
	}
	return fs.WalkDir(root.FS(), p, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := root.Lchown(p, -1, int(*w.fsGroup)); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		st, err := root.Lstat(p)
		if err != nil {
			return err
		}
		mode := st.Mode() | 0o440
		if d.IsDir() {
			mode |= 0o110 | fs.ModeSetgid
		}
		return root.Chmod(p, mode&(fs.ModePerm|fs.ModeSetgid|fs.ModeSetuid|fs.ModeSticky))
	})
}
