package volumes

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	resourcehelper "k8s.io/component-helpers/resource"
)

// downward renders downwardAPI items.
func (v volume) downward(items []corev1.DownwardAPIVolumeFile, mode int32) (payload, error) {
	files := payload{}
	var errs []error
	for _, item := range items {
		f := file{mode: mode}
		if item.Mode != nil {
			f.mode = *item.Mode
		}
		var text string
		var err error
		switch {
		case item.FieldRef != nil:
			text, err = podField(v.pod, item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			text, err = resourceField(v.pod, item.ResourceFieldRef, v.m.opts.NodeAllocatable())
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		f.data = []byte(text)
		files[path.Clean(item.Path)] = f
	}
	return files, errors.Join(errs...)
}

// podField is the value of a metadata field: what downwardAPI volumes can show.
func podField(pod *corev1.Pod, field string) (string, error) {
	if base, key, ok := subscript(field); ok {
		switch base {
		case "metadata.annotations":
			return subscripted(pod.Annotations, field, key, strings.ToLower(key))
		case "metadata.labels":
			return subscripted(pod.Labels, field, key, key)
		}
		return "", fmt.Errorf("fieldPath %q does not support subscript", field)
	}
	switch field {
	case "metadata.annotations":
		return formatMap(pod.Annotations), nil
	case "metadata.labels":
		return formatMap(pod.Labels), nil
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %v", field)
}

func subscripted(m map[string]string, field, key, checked string) (string, error) {
	if errs := validation.IsQualifiedName(checked); len(errs) > 0 {
		return "", fmt.Errorf("invalid key subscript in %s: %s", field, strings.Join(errs, ";"))
	}
	return m[key], nil
}

// subscript splits metadata.labels['key'].
func subscript(field string) (base, key string, ok bool) {
	s, ok := strings.CutSuffix(field, "']")
	if !ok {
		return "", "", false
	}
	base, key, ok = strings.Cut(s, "['")
	return base, key, ok && base != ""
}

// formatMap is the kubelet's form: key="escaped value", sorted, one per line.
func formatMap(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		lines = append(lines, fmt.Sprintf("%v=%q", k, m[k]))
	}
	return strings.Join(lines, "\n")
}

// resourceField is ResourceField of the container that ref names.
func resourceField(pod *corev1.Pod, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	c := findContainer(pod, ref.ContainerName)
	if c == nil {
		return "", fmt.Errorf("container %s not found", ref.ContainerName)
	}
	return ResourceField(pod, c, ref, allocatable)
}

// ResourceField is a container's limit or request in units of the divisor, rounded up. Limits of
// the container that are not set are the pod's, and else what the node can allocate; those of
// huge pages are 0, as they are never promised twice.
func ResourceField(pod *corev1.Pod, c *corev1.Container, ref *corev1.ResourceFieldSelector, allocatable corev1.ResourceList) (string, error) {
	kind, name, _ := strings.Cut(ref.Resource, ".")
	resourceName := corev1.ResourceName(name)
	var value resource.Quantity
	switch {
	case !isDownwardResource(name):
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	case kind == "requests":
		value = c.Resources.Requests[resourceName]
	case kind == "limits":
		value = c.Resources.Limits[resourceName]
		if value.IsZero() && !strings.HasPrefix(name, corev1.ResourceHugePagesPrefix) {
			value = defaultLimit(pod, resourceName, allocatable)
		}
	default:
		return "", fmt.Errorf("unsupported container resource : %v", ref.Resource)
	}
	return inUnits(value, ref.Divisor, resourceName)
}

// defaultLimit is what bounds a container that has no limit of its own.
func defaultLimit(pod *corev1.Pod, name corev1.ResourceName, allocatable corev1.ResourceList) resource.Quantity {
	if pod.Spec.Resources != nil && resourcehelper.IsSupportedPodLevelResource(name) {
		if limit := pod.Spec.Resources.Limits[name]; !limit.IsZero() {
			return limit
		}
	}
	return allocatable[name]
}

func isDownwardResource(name string) bool {
	switch corev1.ResourceName(name) {
	case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
		return true
	}
	return strings.HasPrefix(name, corev1.ResourceHugePagesPrefix)
}

func inUnits(value, divisor resource.Quantity, name corev1.ResourceName) (string, error) {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	n, d := value.Value(), divisor.Value()
	if name == corev1.ResourceCPU {
		n, d = value.MilliValue(), divisor.MilliValue()
	}
	if d <= 0 {
		return "", errors.New("divisor of a resource field is not positive")
	}
	quotient := n / d
	if n%d > 0 {
		quotient++
	}
	return strconv.FormatInt(quotient, 10), nil
}

func findContainer(pod *corev1.Pod, name string) *corev1.Container {
	for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return nil
}
