package provider

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// localSeccomp reads the container's Localhost profile, nil where it has none. It is read
// for every attempt: a profile that was changed holds from the next start on.
func (w *worker) localSeccomp(pod *corev1.Pod, c podplan.Container) (*seccomp.Profile, error) {
	name, err := podplan.LocalSeccomp(pod, c)
	if err != nil || name == "" {
		return nil, err
	}
	file := filepath.Join(w.p.deps.Layout.SeccompProfiles(), name)
	profile, err := readSeccomp(file)
	if err != nil {
		return nil, &podplan.ConfigError{
			Reason: podplan.CreateContainerError, Message: fmt.Sprintf("cannot load seccomp profile %q: %v", file, err),
		}
	}
	return profile, nil
}

func readSeccomp(name string) (*seccomp.Profile, error) {
	file, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if info, err := file.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("it is not a regular file"))
	}
	data, err := io.ReadAll(io.LimitReader(file, seccomp.MaxProfile+1))
	if err != nil {
		return nil, err
	}
	return seccomp.Parse(data)
}
