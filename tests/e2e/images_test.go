package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

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

// pullBackOff is a kubelet's first pause between two pulls of an image.
const pullBackOff = 10 * time.Second

// TestImageThatCannotBePulled: the pod says ErrImagePull, then ImagePullBackOff, is tried
// again after a kubelet's pauses only, with a kubelet's events, and heals by itself.
func TestImageThatCannotBePulled(t *testing.T) {
	e := setupMore(t)
	pod := e.busybox("heals", "exec sleep 3600")
	pod.Spec.Containers[0].Image = registry.Private
	pod.Spec.Containers[0].ImagePullPolicy = corev1.PullAlways
	pod.Spec.ImagePullSecrets = []corev1.LocalObjectReference{{Name: "later"}}
	none := e.busybox("none", "true")
	none.Spec.Containers[0].Image = "registry.k8s.io/e2e-test-images/no-such-image:1"
	e.create(none)
	pod = e.create(pod)
	for _, name := range []string{"heals", "none"} {
		e.waitPod(name, podTimeout, waiting("ErrImagePull"))
		state := e.waitPod(name, podTimeout, waiting("ImagePullBackOff")).Status.ContainerStatuses[0].State.Waiting
		if !strings.HasPrefix(state.Message, "Back-off pulling image") {
			t.Errorf("%s waits with message %q", name, state.Message)
		}
	}
	e.eventually(3*pullBackOff, func() string {
		events := e.events(pod)
		pulls := events["Pulling"]
		if pulls.count < 2 {
			return fmt.Sprintf("events are %v", events)
		}
		if pause := pulls.last.Sub(pulls.first); pause < pullBackOff-time.Second { // times are in whole seconds
			t.Errorf("pulled again after %s, a kubelet waits %s", pause, pullBackOff)
		}
		return ""
	})
	events := e.events(pod)
	for _, reason := range []string{"Pulling", "Failed", "BackOff"} {
		if events[reason].count == 0 {
			t.Errorf("no event %s: %v", reason, events)
		}
	}
	e.dockerLogin("later", registry.Host, registry.PrivateUser, registry.PrivatePassword)
	e.waitPod("heals", podTimeout, running)
	e.remove("none", time.Minute)
}

// told says how often and when events of one reason were told.
type told struct {
	count       int
	first, last time.Time
}

// events are the pod's by their reason.
func (e *env) events(pod *corev1.Pod) map[string]told {
	e.Helper()
	list, err := e.c.Client.CoreV1().Events(e.ns).List(e.Context(), metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("involvedObject.uid", string(pod.UID)).String(),
	})
	if err != nil {
		e.Fatal(err)
	}
	all := map[string]told{}
	for _, event := range list.Items {
		now, seen := all[event.Reason]
		now.count += max(int(event.Count), 1)
		if !seen || event.FirstTimestamp.Time.Before(now.first) {
			now.first = event.FirstTimestamp.Time
		}
		if event.LastTimestamp.After(now.last) {
			now.last = event.LastTimestamp.Time
		}
		all[event.Reason] = now
	}
	return all
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
