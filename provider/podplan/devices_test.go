package podplan

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/systemd"
)

func TestVolumeDevices(t *testing.T) {
	pod := basePod()
	pod.Spec.Containers[0].Command = []string{"true"}
	pod.Spec.Containers[0].VolumeDevices = []corev1.VolumeDevice{{Name: "disk", DevicePath: "/mnt/disk"}, {Name: "ro", DevicePath: "/dev/xvda"}}
	in := PodInputs{Volumes: map[string]Volume{
		"disk": {Path: "/dev/sdb", Device: &BlockDevice{Major: 8, Minor: 16, Mode: 0o660, GID: 6}},
		"ro":   {Path: "/dev/sdc", Readonly: true, Device: &BlockDevice{Major: 8, Minor: 32, Mode: 0o660}},
		"dir":  {Path: "/srv"},
	}}
	lent := Lent{Env: map[string]string{"GPU": "0"}, Devices: []LentDevice{{Path: "/dev/gpu0", Major: 195, Mode: 0o666, Access: "rw"}}, Groups: []uint32{44}}
	launch, err := Build(pod, Containers(pod)[0], Start{}, in, ContainerInputs{Lent: lent})
	if err != nil {
		t.Fatal(err)
	}
	wantDevices := []launchspec.Device{
		{Path: "/dev/gpu0", Type: "c", Major: 195, Mode: 0o666},
		{Path: "/mnt/disk", Type: "b", Major: 8, Minor: 16, Mode: 0o660, GID: 6},
		{Path: "/dev/xvda", Type: "b", Major: 8, Minor: 32, Mode: 0o660},
	}
	wantRules := []systemd.DeviceRule{{Path: "/dev/char/195:0", Access: "rw"}, {Path: "/dev/block/8:16", Access: "rwm"}, {Path: "/dev/block/8:32", Access: "r"}}
	if !reflect.DeepEqual(launch.Spec.Devices, wantDevices) || !reflect.DeepEqual(launch.Unit.DeviceAllow, wantRules) {
		t.Errorf("devices %v, allowed %v", launch.Spec.Devices, launch.Unit.DeviceAllow)
	}

	if !reflect.DeepEqual(launch.Spec.User.Groups, []uint32{44}) {
		t.Errorf("groups %v", launch.Spec.User.Groups)
	}

	wantConfigError := func(change func(*corev1.Container), says string) {
		t.Helper()
		other := pod.DeepCopy()
		change(&other.Spec.Containers[0])
		var config *ConfigError
		if _, err := Build(other, Containers(other)[0], Start{}, in, ContainerInputs{}); !errors.As(err, &config) || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	wantConfigError(func(c *corev1.Container) { c.VolumeDevices[0].Name = "dir" }, `block device of volume "dir"`)
	wantConfigError(func(c *corev1.Container) { c.VolumeMounts = []corev1.VolumeMount{{Name: "disk", MountPath: "/m"}} }, "volume disk has volumeMode Block")
}

// TestHooksOfDevices are the launcher's, and refused where it cannot run them.
func TestHooksOfDevices(t *testing.T) {
	lent := Lent{Hooks: []launchspec.Hook{{Path: "/bin/hook"}}}
	pod := basePod()
	build := func(in PodInputs, image Image) (Launch, error) {
		return Build(pod, Containers(pod)[0], Start{}, in, ContainerInputs{Image: image, Lent: lent})
	}
	image := Image{Cmd: []string{"/app"}}
	launch, err := build(PodInputs{}, image)
	if err != nil || !reflect.DeepEqual(launch.Spec.Hooks, lent.Hooks) {
		t.Errorf("hooks %v, %v", launch.Spec.Hooks, err)
	}
	host := image
	host.Host, host.HostPath = true, "/"
	users := PodInputs{Users: &PodUsers{Path: "/user", First: 1 << 20, Size: 1 << 16}}
	for name, err := range map[string]error{"host image": second(build(PodInputs{}, host)), "users of its own": second(build(users, image))} {
		var config *ConfigError
		if !errors.As(err, &config) || config.Reason != CreateContainerError || !strings.Contains(err.Error(), "hook /bin/hook of a CDI device") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second(_ Launch, err error) error { return err }
