package objects

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1alpha1 "k8s.io/api/certificates/v1alpha1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// TrustBundles reads ClusterTrustBundles (KEP-3257). A node may read them all: one watch of them is
// there for as long as a registered pod refers to any. Registered pods are told of changes of what
// they refer to, by name or by signer.
type TrustBundles interface {
	// TrustBundles returns the texts of those that a projection selects, in the order of their names;
	// none if it selects none. In a cluster that has not the API it is a *NotServedError.
	TrustBundles(ctx context.Context, s *corev1.ClusterTrustBundleProjection) ([]string, error)
}

var _ TrustBundles = (*Cache)(nil)

// maxSelector is how long a label selector may be, a kubelet's bound.
const maxSelector = 100 << 10

// TrustBundles implements TrustBundles.
func (c *Cache) TrustBundles(ctx context.Context, s *corev1.ClusterTrustBundleProjection) ([]string, error) {
	selects, err := selector(s)
	if err != nil {
		return nil, err
	}
	bundles := c.collected(kindBundle)
	if bundles == nil {
		return nil, errors.New("read ClusterTrustBundles: no pod of this node refers to any")
	}
	if err := bundles.answered(ctx, c.opts.FirstAnswer); err != nil {
		return nil, err
	}
	chosen := slices.DeleteFunc(bundles.list(), func(m metav1.Object) bool { return !selects(m) })
	slices.SortFunc(chosen, func(a, b metav1.Object) int { return strings.Compare(a.GetName(), b.GetName()) })
	texts := make([]string, len(chosen))
	for i, m := range chosen {
		_, texts[i] = bundleOf(m)
	}
	return texts, nil
}

// selector is what a projection chooses by: nothing without labelSelector, all of a signer with an
// empty one.
func selector(s *corev1.ClusterTrustBundleProjection) (func(metav1.Object) bool, error) {
	switch {
	case s.Name != nil:
		return func(m metav1.Object) bool { return m.GetName() == *s.Name }, nil
	case s.SignerName == nil:
		return nil, errors.New("ClusterTrustBundle projection requires either name or signerName to be set")
	}
	matches, err := metav1.LabelSelectorAsSelector(s.LabelSelector)
	if err != nil {
		return nil, fmt.Errorf("parse labelSelector: %w", err)
	}
	if size := len(matches.String()); size > maxSelector {
		return nil, fmt.Errorf("label selector length (%d) is larger than %d", size, maxSelector)
	}
	return func(m metav1.Object) bool {
		signer, _ := bundleOf(m)
		return signer == *s.SignerName && matches.Matches(labels.Set(m.GetLabels()))
	}, nil
}

// bundleOf reads a ClusterTrustBundle of any version.
func bundleOf(m metav1.Object) (signer, text string) {
	switch b := m.(type) {
	case *certificatesv1beta1.ClusterTrustBundle:
		return b.Spec.SignerName, b.Spec.TrustBundle
	case *certificatesv1alpha1.ClusterTrustBundle:
		return b.Spec.SignerName, b.Spec.TrustBundle
	}
	return "", ""
}

// bundleAPI is the newest that the cluster serves.
func (c *Cache) bundleAPI() (api, error) {
	version, err := servedVersion(c.client.Discovery(), "clustertrustbundles", "v1beta1", "v1alpha1")
	switch {
	case err != nil:
		return api{}, err
	case version == "v1beta1":
		bundles := c.client.CertificatesV1beta1().ClusterTrustBundles()
		return apiOf(bundles.List, bundles.Watch), nil
	}
	bundles := c.client.CertificatesV1alpha1().ClusterTrustBundles()
	return apiOf(bundles.List, bundles.Watch), nil
}

// bundleChanged tells the pods that refer to it.
func (c *Cache) bundleChanged(before, now metav1.Object) {
	if before == nil && now == nil {
		c.tellUsersOf(func(k key) bool { return collectedAs(k.kind) == kindBundle })
		return
	}
	concerned := map[key]bool{}
	for _, m := range []metav1.Object{before, now} {
		if m == nil {
			continue
		}
		concerned[key{kind: kindBundle, name: m.GetName()}] = true
		if signer, _ := bundleOf(m); signer != "" {
			concerned[key{kind: kindSigner, name: signer}] = true
		}
	}
	c.tellUsersOf(func(k key) bool { return concerned[k] })
}

// bundle adds what a projection refers to.
func (w walker) bundle(s *corev1.ClusterTrustBundleProjection) {
	switch {
	case s.Name != nil:
		w.refs[key{kind: kindBundle, name: *s.Name}] = struct{}{}
	case s.SignerName != nil:
		w.refs[key{kind: kindSigner, name: *s.SignerName}] = struct{}{}
	}
}
