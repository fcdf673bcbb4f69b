package controlplane

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed" // for the manifests
	"encoding/base32"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

//go:embed manifests/bootstrap.yaml
var bootstrapManifest []byte

// objectTimeout bounds the wait for a controller to make an object.
const objectTimeout = time.Minute

// bootstrap puts what joining nodes need into the API, the right to enforce network policies
// included, and waits until pods can be
// made: without its ServiceAccount a namespace refuses them.
func (cp *ControlPlane) bootstrap(ctx context.Context) error {
	root, err := artifacts.Root()
	if err != nil {
		return err
	}
	manifests := [][]byte{bootstrapManifest}
	for _, name := range []string{"node-rbac.yaml", "network-policy-rbac.yaml"} {
		manifest, err := os.ReadFile(filepath.Join(root, "packaging", "manifests", name))
		if err != nil {
			return fmt.Errorf("read the nodes' manifest: %w", err)
		}
		manifests = append(manifests, manifest)
	}
	client, err := cp.Client()
	if err != nil {
		return err
	}
	if err := cp.applyClusterInfo(ctx, client); err != nil {
		return err
	}
	if err := cp.Apply(ctx, bytes.Join(manifests, []byte("\n---\n"))); err != nil {
		return err
	}
	return WaitServiceAccount(ctx, client, metav1.NamespaceDefault)
}

// Apply applies manifests (YAML) on the server's side.
func (cp *ControlPlane) Apply(ctx context.Context, manifests []byte) error {
	cmd := exec.CommandContext(ctx, cp.Kubectl(), "--kubeconfig", cp.Kubeconfig(), "apply", "--server-side", "-f", "-")
	cmd.Stdin = bytes.NewReader(manifests)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apply manifests: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// WaitServiceAccount blocks until the namespace has its default ServiceAccount.
func WaitServiceAccount(ctx context.Context, client kubernetes.Interface, namespace string) error {
	err := wait.PollUntilContextTimeout(ctx, pollInterval, objectTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().ServiceAccounts(namespace).Get(ctx, "default", metav1.GetOptions{})
		return found(err)
	})
	if err != nil {
		return fmt.Errorf("wait for the default ServiceAccount of %s: %w", namespace, err)
	}
	return nil
}

// applyClusterInfo publishes the API server's address and authority for discovery;
// the bootstrapsigner controller signs it with every token.
func (cp *ControlPlane) applyClusterInfo(ctx context.Context, client kubernetes.Interface) error {
	config := clientcmdapi.NewConfig()
	config.Clusters[""] = &clientcmdapi.Cluster{Server: cp.URLs()[0], CertificateAuthorityData: cp.ca.PEM()}
	kubeconfig, err := clientcmd.Write(*config)
	if err != nil {
		return fmt.Errorf("write cluster-info: %w", err)
	}
	err = wait.PollUntilContextTimeout(ctx, pollInterval, objectTimeout, true, func(ctx context.Context) (bool, error) {
		_, err := client.CoreV1().Namespaces().Get(ctx, metav1.NamespacePublic, metav1.GetOptions{})
		return found(err)
	})
	if err != nil {
		return fmt.Errorf("wait for namespace %s: %w", metav1.NamespacePublic, err)
	}
	info := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "cluster-info", Namespace: metav1.NamespacePublic},
		Data:       map[string]string{"kubeconfig": string(kubeconfig)},
	}
	_, err = client.CoreV1().ConfigMaps(metav1.NamespacePublic).Create(ctx, info, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("publish cluster-info: %w", err)
	}
	return nil
}

// NewToken makes a bootstrap token that lives for ttl and waits until cluster-info is
// signed with it, that is until a node can join.
func (cp *ControlPlane) NewToken(ctx context.Context, ttl time.Duration) (string, error) {
	client, err := cp.Client()
	if err != nil {
		return "", err
	}
	id, secret := randomName(6), randomName(16)
	object := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id, Namespace: metav1.NamespaceSystem},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id":                       id,
			"token-secret":                   secret,
			"expiration":                     time.Now().Add(ttl).UTC().Format(time.RFC3339),
			"usage-bootstrap-authentication": "true",
			"usage-bootstrap-signing":        "true",
			"auth-extra-groups":              "system:bootstrappers:kubeadm:default-node-token",
		},
	}
	if _, err := client.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, object, metav1.CreateOptions{}); err != nil {
		return "", fmt.Errorf("make a bootstrap token: %w", err)
	}
	return id + "." + secret, waitSigned(ctx, client, id)
}

func waitSigned(ctx context.Context, client kubernetes.Interface, tokenID string) error {
	err := wait.PollUntilContextTimeout(ctx, pollInterval, objectTimeout, true, func(ctx context.Context) (bool, error) {
		info, err := client.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, "cluster-info", metav1.GetOptions{})
		if err != nil {
			return false, err
		}
		_, signed := info.Data["jws-kubeconfig-"+tokenID]
		return signed, nil
	})
	if err != nil {
		return fmt.Errorf("wait for cluster-info to be signed with token %s: %w", tokenID, err)
	}
	return nil
}

// found maps a Get's error to a condition: not found is not yet.
func found(err error) (bool, error) {
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// randomName is n random characters of a-z and 2-7, five bits each.
func randomName(n int) string {
	raw := make([]byte, n)
	_, _ = rand.Read(raw) // never fails (crypto/rand)
	return strings.ToLower(base32.StdEncoding.EncodeToString(raw))[:n]
}
