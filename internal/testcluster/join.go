package testcluster

import (
	"context"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Token makes a bootstrap token and waits until cluster-info is signed with it.
func (c *Cluster) Token(id, secret string) string {
	c.t.Helper()
	ctx := context.Background()
	c.clusterInfo(ctx)
	object := &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: "bootstrap-token-" + id, Namespace: metav1.NamespaceSystem},
		Type:       corev1.SecretTypeBootstrapToken,
		StringData: map[string]string{
			"token-id": id, "token-secret": secret,
			"usage-bootstrap-authentication": "true", "usage-bootstrap-signing": "true",
		},
	}
	c.eventually("make a bootstrap token", func() bool {
		_, err := c.Admin.CoreV1().Secrets(metav1.NamespaceSystem).Create(ctx, object, metav1.CreateOptions{})
		return err == nil
	})
	c.eventually("sign cluster-info", func() bool {
		info, err := c.Admin.CoreV1().ConfigMaps(metav1.NamespacePublic).Get(ctx, "cluster-info", metav1.GetOptions{})
		return err == nil && info.Data["jws-kubeconfig-"+id] != ""
	})
	return id + "." + secret
}

// clusterInfo publishes the cluster for discovery, as kubeadm does.
func (c *Cluster) clusterInfo(ctx context.Context) {
	config := clientcmdapi.NewConfig()
	config.Clusters[""] = &clientcmdapi.Cluster{Server: c.URLs[0], CertificateAuthorityData: c.CA.PEM()}
	data, err := clientcmd.Write(*config)
	if err != nil {
		c.t.Fatal(err)
	}
	public := metav1.ObjectMeta{Name: "cluster-info", Namespace: metav1.NamespacePublic}
	rules := []rbacv1.PolicyRule{{APIGroups: []string{""}, Resources: []string{"configmaps"}, ResourceNames: []string{"cluster-info"}, Verbs: []string{"get"}}}
	c.eventually("publish cluster-info", func() bool {
		_, err := c.Admin.CoreV1().ConfigMaps(public.Namespace).Create(ctx,
			&corev1.ConfigMap{ObjectMeta: public, Data: map[string]string{"kubeconfig": string(data)}}, metav1.CreateOptions{})
		return err == nil || apierrors.IsAlreadyExists(err)
	})
	_, err = c.Admin.RbacV1().Roles(public.Namespace).Create(ctx, &rbacv1.Role{ObjectMeta: public, Rules: rules}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		c.t.Fatal(err)
	}
	_, err = c.Admin.RbacV1().RoleBindings(public.Namespace).Create(ctx, &rbacv1.RoleBinding{
		ObjectMeta: public,
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: public.Name},
		Subjects:   []rbacv1.Subject{{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: "system:anonymous"}},
	}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		c.t.Fatal(err)
	}
}

// ApproveServing approves every request for a serving certificate that is there.
func (c *Cluster) ApproveServing() (approved int) {
	ctx := context.Background()
	requests := c.Admin.CertificatesV1().CertificateSigningRequests()
	list, err := requests.List(ctx, metav1.ListOptions{})
	if err != nil {
		return 0
	}
	for _, request := range list.Items {
		if request.Spec.SignerName != certificatesv1.KubeletServingSignerName || len(request.Status.Conditions) > 0 {
			continue
		}
		request.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{
			Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test", Message: "approved by the test",
		}}
		if _, err := requests.UpdateApproval(ctx, request.Name, &request, metav1.UpdateOptions{}); err == nil {
			approved++
		}
	}
	return approved
}

func (c *Cluster) eventually(what string, done func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if done() {
			return
		}
	}
	c.t.Fatalf("%s: not in a minute", what)
}
