package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"

	"github.com/vk-metal/vk-metal/tests/registry"
)

const providerDir = "/etc/vk-metal/credential-providers"

// TestCredentialProvider: a plugin of the node's has the password of a registry, and pods need
// no secret. Without its answer the pod waits and says why.
func TestCredentialProvider(t *testing.T) {
	e := setupMore(t)
	node := e.c.Machines()[1].Name
	machine := e.machine(node)
	config := fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: test-login
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["%s/private"]
  defaultCacheDuration: 1m
`, registry.Host)
	answer := fmt.Sprintf(`{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
 "cacheKeyType": "Registry", "auth": {"%s": {"username": "%s", "password": "%s"}}}`, registry.Host, registry.PrivateUser, registry.PrivatePassword)
	// It has no answer before there is a file with one, and keeps what it was asked.
	plugin := "#!/bin/sh\ncd " + providerDir + "\ncat >>asked\necho >>asked\n[ -e answer ] || { echo nobody has logged in >&2; exit 1; }\ncat answer\n"
	e.on(node, "mkdir", "-p", providerDir)
	e.afterwards("remove plugin", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "rm", "-r", providerDir)
		return err
	})
	for name, file := range map[string]string{"config.yaml": config, "test-login": plugin} {
		if err := machine.WriteFile(e.Context(), providerDir+"/"+name, []byte(file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	e.configure(node, "registries: {credentialProviderConfig: "+providerDir+"/config.yaml, credentialProviderBinDir: "+providerDir+"}")

	pod := e.busybox("app", "exec sleep 3600")
	pod.Spec.NodeName = node
	pod.Spec.Containers[0].Image, pod.Spec.Containers[0].ImagePullPolicy = registry.Private, corev1.PullAlways
	pod = e.create(pod)
	e.waitPod("app", podTimeout, waiting("ErrImagePull", "ImagePullBackOff"))
	e.eventually(time.Minute, func() string {
		text := e.messages(pod, "Failed")
		for _, want := range []string{"Failed to pull image \"" + registry.Private, "UNAUTHORIZED: authentication required"} {
			if !strings.Contains(text, want) {
				return fmt.Sprintf("events say %q, want %q", text, want)
			}
		}
		return ""
	})
	// As with a kubelet what the plugin says is for the node's administrator alone.
	if log := e.on(node, "journalctl", "-q", "-u", "vk-metal.service", "--grep", "credential provider test-login.*nobody has logged in"); log == "" {
		t.Error("the agent does not say that the plugin has failed")
	}
	if err := machine.WriteFile(e.Context(), providerDir+"/answer", []byte(answer), 0o600); err != nil {
		t.Fatal(err)
	}
	e.waitPod("app", podTimeout, running)
	again := e.busybox("again", "exec sleep 3600")
	again.Spec.NodeName, again.Spec.Containers = node, pod.Spec.Containers
	again.Spec.Containers[0].VolumeMounts = nil // the service account's are the pod's own
	e.create(again)
	e.waitPod("again", podTimeout, running)
	asked := e.on(node, "cat", providerDir+"/asked")
	if !strings.Contains(asked, `"image":"`+registry.Host+`/private/busybox"`) && !strings.Contains(asked, `"image":"`+registry.Private+`"`) || strings.Contains(asked, "e2e-test-images") {
		t.Errorf("the plugin was asked %s", asked)
	}
}

// messages are those of the pod's events of one reason.
func (e *env) messages(pod *corev1.Pod, reason string) string {
	e.Helper()
	list, err := e.c.Client.CoreV1().Events(e.ns).List(e.Context(), metav1.ListOptions{
		FieldSelector: fields.Set{"involvedObject.uid": string(pod.UID), "reason": reason}.String(),
	})
	if err != nil {
		e.Fatal(err)
	}
	var text strings.Builder
	for _, event := range list.Items {
		text.WriteString(event.Message + "\n")
	}
	return text.String()
}
