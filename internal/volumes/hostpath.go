package volumes

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// hostPath checks, and where the type says so makes, a path of the host. The messages are the
// kubelet's.
func (v volume) hostPath(src *corev1.HostPathVolumeSource) (Mounted, error) {
	if slices.Contains(strings.Split(src.Path, "/"), "..") {
		return Mounted{}, v.fail("hostPath.path", fmt.Errorf("invalid HostPath `%s`: must not contain '..'", src.Path))
	}
	if !filepath.IsAbs(src.Path) || strings.ContainsRune(src.Path, 0) {
		return Mounted{}, v.fail("hostPath.path", fmt.Errorf("invalid HostPath `%s`: must be an absolute path", src.Path))
	}
	kind := corev1.HostPathUnset
	if src.Type != nil {
		kind = *src.Type
	}
	if err := checkHostPath(src.Path, kind); err != nil {
		return Mounted{}, v.fail("hostPath", err)
	}
	st, err := os.Stat(src.Path)
	if err != nil {
		return Mounted{}, v.fail("hostPath", err)
	}
	return Mounted{Path: src.Path, File: !st.IsDir()}, nil
}

// checkHostPath follows symlinks, as the kubelet does: the node's administrator owns the path.
func checkHostPath(path string, kind corev1.HostPathType) error {
	st, err := os.Stat(path)
	missing := errors.Is(err, fs.ErrNotExist)
	switch kind {
	case corev1.HostPathUnset:
		if missing { // a container runtime makes what it is told to bind
			return os.MkdirAll(path, 0o755)
		}
		return nil
	case corev1.HostPathDirectoryOrCreate:
		if missing {
			return os.MkdirAll(path, 0o755)
		}
	case corev1.HostPathFileOrCreate:
		if missing {
			return makeFile(path)
		}
	}
	want, ok := hostPathChecks[kind]
	if !ok {
		return fmt.Errorf("%s is an invalid volume type", kind)
	}
	if err != nil || !want.is(st.Mode()) {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", path, want.name)
	}
	return nil
}

type hostPathCheck struct {
	name string
	is   func(fs.FileMode) bool
}

var hostPathChecks = map[corev1.HostPathType]hostPathCheck{
	corev1.HostPathDirectoryOrCreate: {"directory", fs.FileMode.IsDir},
	corev1.HostPathDirectory:         {"directory", fs.FileMode.IsDir},
	corev1.HostPathFileOrCreate:      {"file", fs.FileMode.IsRegular},
	corev1.HostPathFile:              {"file", fs.FileMode.IsRegular},
	corev1.HostPathSocket:            {"socket file", func(m fs.FileMode) bool { return m&fs.ModeSocket != 0 }},
	corev1.HostPathCharDev:           {"character device", func(m fs.FileMode) bool { return m&fs.ModeCharDevice != 0 }},
	corev1.HostPathBlockDev: {"block device", func(m fs.FileMode) bool {
		return m&fs.ModeDevice != 0 && m&fs.ModeCharDevice == 0
	}},
}

func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}
