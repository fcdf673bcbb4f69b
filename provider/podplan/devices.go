package podplan

import (
	"fmt"
	"path"
	"slices"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/systemd"
)

// addDevices gives the container its volumeDevices: a node at each devicePath, and the leave
// to use it.
func addDevices(launch *Launch, c Container, in PodInputs) error {
	for _, vd := range c.VolumeDevices {
		volume, ok := in.Volumes[vd.Name]
		if !ok || volume.Device == nil {
			return &ConfigError{
				CreateContainerConfigError,
				fmt.Sprintf("cannot find block device of volume %q for container %q", vd.Name, c.Name),
			}
		}
		d := volume.Device
		launch.Spec.Devices = append(launch.Spec.Devices, launchspec.Device{
			Path: path.Clean("/" + vd.DevicePath), Type: "b", Major: d.Major, Minor: d.Minor, Mode: d.Mode, UID: d.UID, GID: d.GID,
		})
		access := "rwm"
		if volume.Readonly {
			access = "r"
		}
		launch.allow("block", d.Major, d.Minor, access)
	}
	return nil
}

// addLent gives the container the devices of device plugins. A device below /dev that every
// container has stays as it is.
func addLent(launch *Launch, lent Lent) error {
	if len(lent.Hooks) > 0 && (launch.Spec.Namespaces.User != nil || launch.Spec.Root.HostPath != "") {
		return &ConfigError{CreateContainerError, fmt.Sprintf("hook %s of a CDI device cannot run for a pod with hostUsers: false or an image of the host", lent.Hooks[0].Path)}
	}
	launch.Spec.Hooks = lent.Hooks
	for _, d := range lent.Devices {
		kind, name := "c", "char"
		if d.Block {
			kind, name = "b", "block"
		}
		launch.Spec.Devices = append(launch.Spec.Devices, launchspec.Device{
			Path: path.Clean("/" + d.Path), Type: kind, Major: d.Major, Minor: d.Minor, Mode: d.Mode, UID: d.UID, GID: d.GID,
		})
		launch.allow(name, d.Major, d.Minor, d.Access)
	}
	for _, g := range lent.Groups {
		if user := &launch.Spec.User; !slices.Contains(user.Groups, g) {
			user.Groups = append(user.Groups, g)
		}
	}
	return nil
}

// allow names the device by its number, which systemd takes without looking for a node.
func (l *Launch) allow(kind string, major, minor uint32, access string) {
	if l.Unit.AllDevices {
		return
	}
	l.Unit.DeviceAllow = append(l.Unit.DeviceAllow, systemd.DeviceRule{Path: fmt.Sprintf("/dev/%s/%d:%d", kind, major, minor), Access: access})
}
