package objects

import (
	corev1 "k8s.io/api/core/v1"
)

// Kinds of objects that pods refer to.
const (
	kindConfigMap = "ConfigMap"
	kindSecret    = "Secret"
	// All objects of these are watched by one watch each.
	kindBundle  = "ClusterTrustBundle"
	kindSigner  = "ClusterTrustBundle of a signer" // named by the signer
	kindRequest = "PodCertificateRequest"          // without a name: which there are is not in the spec
)

// collectedAs is the kind of the collection in which objects of a kind are; empty for what is
// watched one by one.
func collectedAs(kind string) string {
	switch kind {
	case kindBundle, kindSigner:
		return kindBundle
	case kindRequest:
		return kindRequest
	}
	return ""
}

// key names one object.
type key struct{ kind, namespace, name string }

// References of a pod, as a set.
type refs map[key]struct{}

// podRefs collects every object that a pod names: env, envFrom, volumes,
// imagePullSecrets, of all kinds of containers.
func podRefs(pod *corev1.Pod) refs {
	w := walker{namespace: pod.Namespace, refs: refs{}}
	for _, s := range pod.Spec.ImagePullSecrets {
		w.secret(s.Name)
	}
	for i := range pod.Spec.InitContainers {
		w.env(pod.Spec.InitContainers[i].Env, pod.Spec.InitContainers[i].EnvFrom)
	}
	for i := range pod.Spec.Containers {
		w.env(pod.Spec.Containers[i].Env, pod.Spec.Containers[i].EnvFrom)
	}
	for i := range pod.Spec.EphemeralContainers {
		w.env(pod.Spec.EphemeralContainers[i].Env, pod.Spec.EphemeralContainers[i].EnvFrom)
	}
	for i := range pod.Spec.Volumes {
		w.volume(&pod.Spec.Volumes[i].VolumeSource)
	}
	return w.refs
}

type walker struct {
	namespace string
	refs      refs
}

func (w walker) configMap(name string) { w.add(kindConfigMap, name) }
func (w walker) secret(name string)    { w.add(kindSecret, name) }

func (w walker) add(kind, name string) {
	if name != "" {
		w.refs[key{kind, w.namespace, name}] = struct{}{}
	}
}

func (w walker) env(env []corev1.EnvVar, from []corev1.EnvFromSource) {
	for _, e := range env {
		if e.ValueFrom == nil {
			continue
		}
		if r := e.ValueFrom.ConfigMapKeyRef; r != nil {
			w.configMap(r.Name)
		}
		if r := e.ValueFrom.SecretKeyRef; r != nil {
			w.secret(r.Name)
		}
	}
	for _, f := range from {
		if f.ConfigMapRef != nil {
			w.configMap(f.ConfigMapRef.Name)
		}
		if f.SecretRef != nil {
			w.secret(f.SecretRef.Name)
		}
	}
}

func (w walker) volume(v *corev1.VolumeSource) {
	switch {
	case v.ConfigMap != nil:
		w.configMap(v.ConfigMap.Name)
	case v.Secret != nil:
		w.secret(v.Secret.SecretName)
	case v.Projected != nil:
		for _, s := range v.Projected.Sources {
			if s.ConfigMap != nil {
				w.configMap(s.ConfigMap.Name)
			}
			if s.Secret != nil {
				w.secret(s.Secret.Name)
			}
			if s.ClusterTrustBundle != nil {
				w.bundle(s.ClusterTrustBundle)
			}
			if s.PodCertificate != nil {
				w.refs[key{kind: kindRequest}] = struct{}{}
			}
		}
	case v.CSI != nil && v.CSI.NodePublishSecretRef != nil:
		w.secret(v.CSI.NodePublishSecretRef.Name)
	case v.ISCSI != nil && v.ISCSI.SecretRef != nil:
		w.secret(v.ISCSI.SecretRef.Name)
	}
}
