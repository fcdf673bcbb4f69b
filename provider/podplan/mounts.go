package podplan

import (
	"fmt"
	"path"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// mountsOf lists the container's mounts: the pod's files first, then the volumes, outer
// paths before inner ones.
func mountsOf(c Container, in PodInputs, cin ContainerInputs) ([]launchspec.Mount, error) {
	volumes, err := volumeMounts(c, in, cin)
	if err != nil {
		return nil, err
	}
	taken := map[string]bool{}
	for _, m := range volumes {
		taken[path.Clean(m.Target)] = true
	}
	readonly := rootReadonly(c)
	var mounts []launchspec.Mount
	add := func(m launchspec.Mount) {
		if m.Source != "" && !taken[path.Clean(m.Target)] {
			mounts = append(mounts, m)
		}
	}
	add(launchspec.Mount{Kind: launchspec.MountBind, Source: in.Shm, Target: "/dev/shm", NoSuid: true, NoDev: true, NoExec: true})
	if cin.Image.HostPath != "/" {
		add(launchspec.Mount{Kind: launchspec.MountBind, Source: in.HostnameFile, Target: "/etc/hostname", File: true, Readonly: readonly})
	}
	add(launchspec.Mount{Kind: launchspec.MountBind, Source: in.ResolvConf, Target: "/etc/resolv.conf", File: true, Readonly: readonly})
	add(launchspec.Mount{Kind: launchspec.MountBind, Source: in.Hosts, Target: "/etc/hosts", File: true, Readonly: readonly})
	mounts = append(mounts, volumes...)
	for _, m := range cin.Lent.Mounts {
		add(launchspec.Mount{
			Kind: launchspec.MountBind, Source: m.Source, Target: m.Target, File: m.File, Recursive: true,
			Readonly: m.Readonly, NoSuid: m.NoSuid, NoDev: m.NoDev, NoExec: m.NoExec,
		})
	}
	if c.TerminationMessagePath != "" {
		add(launchspec.Mount{Kind: launchspec.MountBind, Source: cin.TerminationLog, Target: c.TerminationMessagePath, File: true})
	}
	return mounts, nil
}

func rootReadonly(c Container) bool {
	ro := containerContext(c).ReadOnlyRootFilesystem
	return ro != nil && *ro
}

func volumeMounts(c Container, in PodInputs, cin ContainerInputs) ([]launchspec.Mount, error) {
	var mounts []launchspec.Mount
	for _, vm := range c.VolumeMounts {
		m, err := volumeMount(c, vm, in, cin)
		if err != nil {
			return nil, err
		}
		mounts = append(mounts, m)
	}
	slices.SortStableFunc(mounts, func(a, b launchspec.Mount) int { return depth(a.Target) - depth(b.Target) })
	return mounts, nil
}

func depth(p string) int { return strings.Count(path.Clean("/"+p), "/") }

func volumeMount(c Container, vm corev1.VolumeMount, in PodInputs, cin ContainerInputs) (launchspec.Mount, error) {
	volume, ok := in.Volumes[vm.Name]
	if image, is := cin.ImageVolumes[vm.Name]; is {
		volume, ok = image, true
	}
	if !ok {
		return launchspec.Mount{}, &ConfigError{
			CreateContainerConfigError,
			fmt.Sprintf("cannot find volume %q to mount into container %q", vm.Name, c.Name),
		}
	}
	if volume.Device != nil {
		return launchspec.Mount{}, &ConfigError{
			CreateContainerConfigError,
			fmt.Sprintf("volume %s has volumeMode Block, but is specified in volumeMounts of container %q", vm.Name, c.Name),
		}
	}
	subPath, err := subPathOf(vm, cin.Env)
	if err != nil {
		return launchspec.Mount{}, err
	}
	target := vm.MountPath
	if !path.IsAbs(target) {
		target = "/" + target
	}
	if volume.Layers != nil {
		return launchspec.Mount{
			Kind: launchspec.MountImage, Lowers: volume.Layers, Target: target, SubPath: subPath, Readonly: true, NoExec: true, NoSuid: true, NoDev: true,
		}, nil
	}
	return launchspec.Mount{
		Kind: launchspec.MountBind, Source: volume.Path, Target: target, SubPath: subPath,
		File: volume.File && subPath == "", Readonly: vm.ReadOnly || volume.Readonly, Recursive: true,
		NoExec: volume.NoExec, NoSuid: volume.NoSuid, NoDev: volume.NoDev,
		Propagation: propagation(vm.MountPropagation), WritableBelow: vm.ReadOnly && !volume.Readonly && !ReadOnlyBelow(vm),
	}, nil
}

// ReadOnlyBelow says whether what is mounted in the volume is read-only with it (KEP-3857). Every node
// that runs vk-metal can do that: IfPossible is Enabled.
func ReadOnlyBelow(vm corev1.VolumeMount) bool {
	return vm.ReadOnly && vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled
}

func subPathOf(vm corev1.VolumeMount, env []EnvVar) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		missing := ""
		lookup := lookupEnv(env)
		sub = Expand(vm.SubPathExpr, func(name string) (string, bool) {
			v, ok := lookup(name)
			if !ok {
				missing = name
			}
			return v, ok
		})
		if missing != "" {
			return "", &ConfigError{CreateContainerConfigError, fmt.Sprintf("missing value for %q", missing)}
		}
	}
	if path.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return "", &ConfigError{CreateContainerConfigError, fmt.Sprintf("subPath %q must not be absolute or contain \"..\"", sub)}
	}
	return sub, nil
}

func propagation(mode *corev1.MountPropagationMode) string {
	if mode == nil {
		return ""
	}
	switch *mode {
	case corev1.MountPropagationHostToContainer:
		return "rslave"
	case corev1.MountPropagationBidirectional:
		return "rshared"
	}
	return ""
}
