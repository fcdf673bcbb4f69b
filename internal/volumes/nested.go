package volumes

import (
	"path"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// nestedMounts lists the directories of this volume that other volumes are mounted on: a
// read-only volume must have them from the start.
func (v volume) nestedMounts() []string {
	var out []string
	for _, list := range [][]corev1.Container{v.pod.Spec.InitContainers, v.pod.Spec.Containers} {
		for i := range list {
			out = append(out, nestedIn(v.spec.Name, list[i].VolumeMounts)...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func nestedIn(volume string, mounts []corev1.VolumeMount) []string {
	var out []string
	for _, own := range mounts {
		if own.Name != volume {
			continue
		}
		base := path.Join(own.SubPath, "/")
		for _, other := range mounts {
			rel, err := filepath.Rel(path.Clean(own.MountPath), path.Clean(other.MountPath))
			if other.Name == volume || err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
				continue
			}
			dir := path.Join(strings.Trim(base, "/"), rel)
			if checkPath(dir) == nil {
				out = append(out, dir)
			}
		}
	}
	return out
}
