package provider

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// envSet is an environment under construction: names once, in the order of first mention.
type envSet struct {
	names  []string
	values map[string]string
}

func (e *envSet) set(name, value string) {
	if _, ok := e.values[name]; !ok {
		e.names = append(e.names, name)
	}
	e.values[name] = value
}

func (e *envSet) list() []podplan.EnvVar {
	out := make([]podplan.EnvVar, 0, len(e.names))
	for _, name := range e.names {
		out = append(out, podplan.EnvVar{Name: name, Value: e.values[name]})
	}
	return out
}

// resolveEnv computes a container's environment as a kubelet does: envFrom first, env over
// it, each value expanded by what was defined before it and by the service variables,
// which come last where nothing has their name.
func (w *worker) resolveEnv(ctx context.Context, pod *corev1.Pod, c podplan.Container, ips []string, mounted map[string]podplan.Volume) ([]podplan.EnvVar, error) {
	services, err := w.serviceEnv(pod)
	if err != nil {
		return nil, err
	}
	env := &envSet{values: map[string]string{}}
	for _, from := range c.EnvFrom {
		if err := w.envFrom(ctx, pod, from, env); err != nil {
			return nil, err
		}
	}
	lookup := func(name string) (string, bool) {
		if v, ok := env.values[name]; ok {
			return v, true
		}
		v, ok := services[name]
		return v, ok
	}
	for _, v := range c.Env {
		switch {
		case v.Value != "" || v.ValueFrom == nil:
			env.set(v.Name, podplan.Expand(v.Value, lookup))
		default:
			value, ok, err := w.envValue(ctx, pod, c, v, ips, mounted)
			if err != nil {
				return nil, err
			}
			if ok {
				env.set(v.Name, value)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(services)) {
		if _, taken := env.values[name]; !taken {
			env.set(name, services[name])
		}
	}
	return env.list(), nil
}

// envFrom takes over every key that can be a variable's name.
func (w *worker) envFrom(ctx context.Context, pod *corev1.Pod, from corev1.EnvFromSource, env *envSet) error {
	values := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		cm, err := w.p.deps.Objects.ConfigMap(ctx, pod.Namespace, from.ConfigMapRef.Name)
		if err != nil {
			return missingRef("configmap", pod.Namespace, from.ConfigMapRef.Name, from.ConfigMapRef.Optional, err)
		}
		values = cm.Data
	case from.SecretRef != nil:
		secret, err := w.p.deps.Objects.Secret(ctx, pod.Namespace, from.SecretRef.Name)
		if err != nil {
			return missingRef("secret", pod.Namespace, from.SecretRef.Name, from.SecretRef.Optional, err)
		}
		for k, v := range secret.Data {
			values[k] = string(v)
		}
	}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		name := from.Prefix + key
		if len(validation.IsRelaxedEnvVarName(name)) == 0 {
			env.set(name, values[key])
		}
	}
	return nil
}

// missingRef is nil for an optional reference to an object that does not exist.
func missingRef(kind, namespace, name string, optional *bool, err error) error {
	if apierrors.IsNotFound(err) {
		if optional != nil && *optional {
			return nil
		}
		return fmt.Errorf("%s %q not found", kind, name)
	}
	return fmt.Errorf("couldn't get %s %s/%s: %w", kind, namespace, name, err)
}

// envValue resolves valueFrom; ok is false where an optional key is missing.
func (w *worker) envValue(ctx context.Context, pod *corev1.Pod, c podplan.Container, v corev1.EnvVar, ips []string, mounted map[string]podplan.Volume) (value string, ok bool, err error) {
	from := v.ValueFrom
	switch {
	case from.FieldRef != nil:
		value, err = w.fieldValue(pod, from.FieldRef.FieldPath, ips)
		return value, true, err
	case from.ResourceFieldRef != nil:
		value, err = w.resourceValue(pod, c, from.ResourceFieldRef)
		return value, true, err
	case from.ConfigMapKeyRef != nil:
		return w.configMapKey(ctx, pod, from.ConfigMapKeyRef)
	case from.SecretKeyRef != nil:
		return w.secretKey(ctx, pod, from.SecretKeyRef)
	case from.FileKeyRef != nil:
		return fileKey(mounted, from.FileKeyRef)
	}
	return "", false, fmt.Errorf("env %q has a source that is not supported", v.Name)
}

func (w *worker) configMapKey(ctx context.Context, pod *corev1.Pod, ref *corev1.ConfigMapKeySelector) (string, bool, error) {
	cm, err := w.p.deps.Objects.ConfigMap(ctx, pod.Namespace, ref.Name)
	if err != nil {
		return "", false, missingRef("configmap", pod.Namespace, ref.Name, ref.Optional, err)
	}
	if value, ok := cm.Data[ref.Key]; ok {
		return value, true, nil
	}
	if ref.Optional != nil && *ref.Optional {
		return "", false, nil
	}
	return "", false, fmt.Errorf("couldn't find key %v in ConfigMap %v/%v", ref.Key, pod.Namespace, ref.Name)
}

func (w *worker) secretKey(ctx context.Context, pod *corev1.Pod, ref *corev1.SecretKeySelector) (string, bool, error) {
	secret, err := w.p.deps.Objects.Secret(ctx, pod.Namespace, ref.Name)
	if err != nil {
		return "", false, missingRef("secret", pod.Namespace, ref.Name, ref.Optional, err)
	}
	if value, ok := secret.Data[ref.Key]; ok {
		return string(value), true, nil
	}
	if ref.Optional != nil && *ref.Optional {
		return "", false, nil
	}
	return "", false, fmt.Errorf("couldn't find key %v in Secret %v/%v", ref.Key, pod.Namespace, ref.Name)
}

// fieldValue resolves the paths that the API server admits for env.
func (w *worker) fieldValue(pod *corev1.Pod, path string, ips []string) (string, error) {
	if name, key, ok := subscript(path); ok {
		switch name {
		case "metadata.labels":
			return pod.Labels[key], nil
		case "metadata.annotations":
			return pod.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.podIP":
		return first(ips), nil
	case "status.podIPs":
		return strings.Join(ips, ","), nil
	case "status.hostIP":
		return first(w.p.deps.HostIPs()), nil
	case "status.hostIPs":
		return strings.Join(w.p.deps.HostIPs(), ","), nil
	}
	return "", fmt.Errorf("unsupported fieldPath: %s", path)
}

// subscript splits metadata.labels['key'].
func subscript(path string) (name, key string, ok bool) {
	name, rest, found := strings.Cut(path, "['")
	if !found {
		return "", "", false
	}
	key, ok = strings.CutSuffix(rest, "']")
	return name, key, ok
}

// resourceValue resolves limits.* and requests.* of a container, this one if ref names none.
func (w *worker) resourceValue(pod *corev1.Pod, c podplan.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		other, ok := podplan.Find(pod, ref.ContainerName)
		if !ok {
			return "", fmt.Errorf("container %s not found", ref.ContainerName)
		}
		c = other
	}
	var allocatable corev1.ResourceList
	if w.p.deps.Node.Allocatable != nil {
		allocatable = w.p.deps.Node.Allocatable()
	}
	return volumes.ResourceField(pod, &c.Container, ref, allocatable)
}
