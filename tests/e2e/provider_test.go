package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
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
	answer := fmt.Sprintf(`{"apiVersion": "credentialprovider.kubelet.k8s.io/v1", "kind": "CredentialProviderResponse",
 "cacheKeyType": "Registry", "auth": {"%s": {"username": "%s", "password": "%s"}}}`, registry.Host, registry.PrivateUser, registry.PrivatePassword)
	// It has no answer before there is a file with one, and keeps what it was asked.
	plugin := "#!/bin/sh\ncd " + providerDir + "\ncat >>asked\necho >>asked\n[ -e answer ] || { echo nobody has logged in >&2; exit 1; }\ncat answer\n"
	e.on(node, "mkdir", "-p", providerDir)
	e.afterwards("remove plugin", func(ctx context.Context) error {
		_, err := machine.Run(ctx, "rm", "-r", providerDir)
		return err
	})
	for name, file := range map[string]string{"config.yaml": providerConfig, "by-account.yaml": providerConfig + tokenAttributes, "test-login": plugin} {
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
	e.checkTokenAttributes(node, pod)
}

// providerConfig is for the registry's private repository.
var providerConfig = fmt.Sprintf(`apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: test-login
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ["%s/private"]
  defaultCacheDuration: 1m
`, registry.Host)

// tokenAttributes has the plugin act for service accounts with an annotation.
const tokenAttributes = `  tokenAttributes:
    serviceAccountTokenAudience: registry.e2e
    cacheType: ServiceAccount
    requireServiceAccount: true
    requiredServiceAccountAnnotationKeys: [example.com/registry]
`

// checkTokenAttributes: the plugin gets a token of the pod that an API server has signed, and is
// not asked for accounts that do not want it.
func (e *env) checkTokenAttributes(node string, like *corev1.Pod) {
	e.Helper()
	e.mayAskFor("registry.e2e")
	accounts := e.c.Client.CoreV1().ServiceAccounts(e.ns)
	wants := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "wants", Annotations: map[string]string{"example.com/registry": "yes"}}}
	for _, account := range []*corev1.ServiceAccount{wants, {ObjectMeta: metav1.ObjectMeta{Name: "plain"}}} {
		if _, err := accounts.Create(e.Context(), account, metav1.CreateOptions{}); err != nil {
			e.Fatal(err)
		}
	}
	e.configure(node, "registries: {credentialProviderConfig: "+providerDir+"/by-account.yaml, credentialProviderBinDir: "+providerDir+"}")
	e.on(node, "rm", providerDir+"/asked")
	for _, account := range []string{"wants", "plain"} {
		pod := e.busybox(account, "exec sleep 3600")
		pod.Spec.NodeName, pod.Spec.ServiceAccountName = node, account
		pod.Spec.Containers[0].Image, pod.Spec.Containers[0].ImagePullPolicy = like.Spec.Containers[0].Image, corev1.PullAlways
		e.create(pod)
	}
	e.waitPod("plain", podTimeout, waiting("ErrImagePull", "ImagePullBackOff"))
	pod := e.waitPod("wants", podTimeout, running)
	var request struct {
		ServiceAccountToken       string
		ServiceAccountAnnotations map[string]string
	}
	asked := e.on(node, "cat", providerDir+"/asked")
	if err := json.Unmarshal([]byte(asked), &request); err != nil || request.ServiceAccountAnnotations["example.com/registry"] != "yes" {
		e.Fatalf("the plugin was asked %s (%v)", asked, err)
	}
	review, err := e.c.Client.AuthenticationV1().TokenReviews().Create(e.Context(), &authenticationv1.TokenReview{
		Spec: authenticationv1.TokenReviewSpec{Token: request.ServiceAccountToken, Audiences: []string{"registry.e2e"}},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	user := review.Status.User
	if !review.Status.Authenticated || user.Username != "system:serviceaccount:"+e.ns+":wants" || !slices.Contains(user.Extra["authentication.kubernetes.io/pod-uid"], string(pod.UID)) {
		e.Errorf("the token is that of %+v (%s)", user, review.Status.Error)
	}
}

// mayAskFor lets nodes ask for tokens of an audience until the test ends.
func (e *env) mayAskFor(audience string) {
	e.Helper()
	rbac := e.c.Client.RbacV1()
	meta := metav1.ObjectMeta{Name: "tokens-" + e.ns}
	_, err := rbac.ClusterRoles().Create(e.Context(), &rbacv1.ClusterRole{ObjectMeta: meta, Rules: []rbacv1.PolicyRule{
		{Verbs: []string{"request-serviceaccounts-token-audience"}, APIGroups: []string{""}, Resources: []string{audience}},
	}}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
	}
	e.afterwards("remove role", func(ctx context.Context) error {
		return errors.Join(rbac.ClusterRoles().Delete(ctx, meta.Name, metav1.DeleteOptions{}), rbac.ClusterRoleBindings().Delete(ctx, meta.Name, metav1.DeleteOptions{}))
	})
	_, err = rbac.ClusterRoleBindings().Create(e.Context(), &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: meta.Name},
		Subjects: []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: "system:nodes"}},
	}, metav1.CreateOptions{})
	if err != nil {
		e.Fatal(err)
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
