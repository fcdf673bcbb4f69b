package e2e

import (
	"encoding/base64"
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/tests/registry"
)

func TestPrivateImageNeedsItsSecret(t *testing.T) {
	e := setup(t)
	pod := e.busybox("private", "sleep 3600")
	pod.Spec.Containers[0].Image = registry.Private
	pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
	e.create(pod)
	e.waitPod("private", podTimeout, waiting("ErrImagePull", "ImagePullBackOff"))
	e.dockerLogin("login", registry.Host, registry.PrivateUser, registry.PrivatePassword)
	pod = e.busybox("with-secret", "sleep 3600")
	pod.Spec.Containers[0].Image = registry.Private
	pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "login"}}
	e.create(pod)
	e.waitPod("with-secret", podTimeout, running)
}

// dockerLogin makes a pull secret.
func (e *env) dockerLogin(name, host, user, password string) {
	e.Helper()
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	config, err := json.Marshal(map[string]any{"auths": map[string]any{host: map[string]string{"auth": auth}}})
	if err != nil {
		e.Fatal(err)
	}
	secret := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Type: corev1.SecretTypeDockerConfigJson,
		Data: map[string][]byte{corev1.DockerConfigJsonKey: config},
	}
	if _, err := e.c.Client.CoreV1().Secrets(e.ns).Create(e.Context(), secret, metav1.CreateOptions{}); err != nil {
		e.Fatal(err)
	}
}

// TestImageUser runs images whose user is a number or a name.
func TestImageUser(t *testing.T) {
	e := setup(t)
	for name, c := range map[string]struct{ image, want string }{
		"number": {registry.NonRoot, "1234:0\n"},
		"name":   {registry.NamedUser, "65534:65534\n"},
		"none":   {registry.Busybox, "0:0\n"},
	} {
		pod := e.busybox("user-"+name, `echo "$(id -u):$(id -g)"`)
		pod.Spec.RestartPolicy = corev1.RestartPolicyNever
		pod.Spec.Containers[0].Image = c.image
		e.create(pod)
		e.waitPod(pod.Name, podTimeout, phase(corev1.PodSucceeded))
		if got := e.logs(pod.Name, &corev1.PodLogOptions{}); got != c.want {
			t.Errorf("%s: runs as %q, want %q", name, got, c.want)
		}
	}
}
