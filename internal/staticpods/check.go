package staticpods

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// check refuses what an API server would refuse and a node relies on, and what a static
// pod may not have: it cannot wait for, and must not read, objects of the API.
func check(pod *corev1.Pod) error {
	switch {
	case pod.Kind != "Pod" || pod.APIVersion != "v1":
		return wrong("kind", "it is a %q of %q, not a Pod of v1", pod.Kind, pod.APIVersion)
	case pod.GenerateName != "":
		return wrong("metadata.generateName", "a static pod needs a name")
	case pod.Spec.NodeName != "":
		return wrong("spec.nodeName", "a static pod runs where its manifest lies: remove it")
	case len(pod.Spec.EphemeralContainers) > 0:
		return wrong("spec.ephemeralContainers", "not possible in a static pod")
	case len(pod.Spec.Containers) == 0:
		return wrong("spec.containers", "at least one is needed")
	}
	if err := names("metadata.name", pod.Name, validation.IsDNS1123Subdomain); err != nil {
		return err
	}
	if pod.Namespace != "" {
		if err := names("metadata.namespace", pod.Namespace, validation.IsDNS1123Label); err != nil {
			return err
		}
	}
	if err := policies(&pod.Spec); err != nil {
		return err
	}
	volumes, err := checkVolumes(&pod.Spec)
	if err != nil {
		return err
	}
	return errors.Join(references(&pod.Spec), containers(&pod.Spec, volumes))
}

func names(field, value string, valid func(string) []string) error {
	if problems := valid(value); len(problems) > 0 {
		return wrong(field, "%q cannot be one: %s", value, problems[0])
	}
	return nil
}

func policies(spec *corev1.PodSpec) error {
	switch spec.RestartPolicy {
	case "", corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever:
	default:
		return wrong("spec.restartPolicy", "%q must be Always, OnFailure or Never", spec.RestartPolicy)
	}
	if s := spec.TerminationGracePeriodSeconds; s != nil && *s < 0 {
		return wrong("spec.terminationGracePeriodSeconds", "%d must not be negative", *s)
	}
	return nil
}

func checkVolumes(spec *corev1.PodSpec) (map[string]bool, error) {
	known := map[string]bool{}
	for i, v := range spec.Volumes {
		field := fmt.Sprintf("spec.volumes[%d]", i)
		if err := names(field+".name", v.Name, validation.IsDNS1123Label); err != nil {
			return nil, err
		}
		if known[v.Name] {
			return nil, wrong(field+".name", "%q is there twice", v.Name)
		}
		known[v.Name] = true
		switch {
		case v.ConfigMap != nil, v.Secret != nil, v.PersistentVolumeClaim != nil, v.Ephemeral != nil, v.CSI != nil, v.Projected != nil:
			return nil, wrong(field, "volume %q refers to objects of the API, which a static pod may not", v.Name)
		}
	}
	return known, nil
}

// references refuses what would be read from the API beside volumes and environments.
func references(spec *corev1.PodSpec) error {
	const text = "refers to objects of the API, which a static pod may not"
	switch {
	case spec.ServiceAccountName != "":
		return wrong("spec.serviceAccountName", text)
	case spec.DeprecatedServiceAccount != "":
		return wrong("spec.serviceAccount", text)
	case len(spec.ImagePullSecrets) > 0:
		return wrong("spec.imagePullSecrets", text)
	case len(spec.ResourceClaims) > 0:
		return wrong("spec.resourceClaims", text)
	}
	return nil
}

func containers(spec *corev1.PodSpec, volumes map[string]bool) error {
	known := map[string]bool{}
	for _, list := range []struct {
		field string
		of    []corev1.Container
	}{{"spec.initContainers", spec.InitContainers}, {"spec.containers", spec.Containers}} {
		for i := range list.of {
			c, field := &list.of[i], fmt.Sprintf("%s[%d]", list.field, i)
			if err := names(field+".name", c.Name, validation.IsDNS1123Label); err != nil {
				return err
			}
			if known[c.Name] {
				return wrong(field+".name", "%q is there twice", c.Name)
			}
			known[c.Name] = true
			if err := container(field, c, volumes); err != nil {
				return err
			}
		}
	}
	return nil
}

func container(field string, c *corev1.Container, volumes map[string]bool) error {
	if c.Image == "" {
		return wrong(field+".image", "container %s needs an image", c.Name)
	}
	for i, mount := range c.VolumeMounts {
		if !volumes[mount.Name] {
			return wrong(fmt.Sprintf("%s.volumeMounts[%d]", field, i), "there is no volume %q", mount.Name)
		}
	}
	if len(c.EnvFrom) > 0 {
		return wrong(field+".envFrom", "refers to objects of the API, which a static pod may not")
	}
	for i, env := range c.Env {
		if from := env.ValueFrom; from != nil && (from.ConfigMapKeyRef != nil || from.SecretKeyRef != nil) {
			return wrong(fmt.Sprintf("%s.env[%d]", field, i), "%s refers to objects of the API, which a static pod may not", env.Name)
		}
	}
	return nil
}
