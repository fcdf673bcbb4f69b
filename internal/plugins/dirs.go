package plugins

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// MakeDirs makes the kubelet's directories, which plugins hard-code, and has the host share
// the mounts below that of the pods: what a plugin mounts there in its own mount namespace
// (mountPropagation: Bidirectional) is to be seen by the node, and by other plugins.
func MakeDirs(layout paths.Layout) error {
	for _, dir := range []string{
		layout.Kubelet, layout.Plugins(), layout.PluginSockets(), layout.KubeletPods(), layout.DevicePlugins(), layout.PodResources(),
	} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return fmt.Errorf("make directory of plugins: %w", err)
		}
	}
	if err := share(layout.Kubelet); err != nil {
		return fmt.Errorf("share mounts of plugins: %w", err)
	}
	return nil
}

// share makes the mount that dir lies on a shared one. Where systemd runs it is; else dir
// becomes a mount of its own.
func share(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	var over *mountinfo.Info // the longest; of several at one place the last
	for _, m := range mounts {
		if over == nil || len(m.Mountpoint) >= len(over.Mountpoint) {
			over = m
		}
	}
	if over == nil || strings.Contains(over.Optional, "shared:") {
		return nil
	}
	if over.Mountpoint != dir {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make %s shared: %w", dir, err)
	}
	return nil
}
