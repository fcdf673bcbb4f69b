package images

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	kubeletconfig "k8s.io/kubelet/config/v1"
)

// Accounts are the service accounts of pods.
type Accounts interface {
	// ServiceAccount reads one.
	ServiceAccount(ctx context.Context, namespace, name string) (*corev1.ServiceAccount, error)
	// Token is one of the pod's service account, bound to the pod; 0 seconds are the API's default.
	Token(ctx context.Context, pod *corev1.Pod, audience string, expirationSeconds int64) (string, error)
}

// account is for whom a plugin is asked; the zero value is the node itself.
type account struct {
	token       string
	annotations map[string]string
	// name is the coordinates that a login is known by, cacheKey whose it is in the cache.
	name, cacheKey string
}

const accountPrefix = "account:"

// errNoAccount says that a plugin is not for this pod, which is no fault.
var errNoAccount = errors.New("not for this pod")

// accountFor makes what the plugin wants of the pod's service account (KEP-4412).
func (c *CredentialProviders) accountFor(ctx context.Context, p *kubeletconfig.CredentialProvider, pod *corev1.Pod) (account, error) {
	wants := p.TokenAttributes
	if wants == nil {
		return account{}, nil
	}
	if pod == nil || pod.Spec.ServiceAccountName == "" { // a static pod, or nobody's pull
		if *wants.RequireServiceAccount {
			return account{}, errNoAccount
		}
		return account{}, nil
	}
	if c.accounts == nil {
		return account{}, errors.New("service accounts cannot be had here")
	}
	sa, err := c.accounts.ServiceAccount(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
	if err != nil {
		return account{}, fmt.Errorf("read service account %s/%s: %w", pod.Namespace, pod.Spec.ServiceAccountName, err)
	}
	annotations := map[string]string{}
	for _, key := range wants.RequiredServiceAccountAnnotationKeys {
		if _, ok := sa.Annotations[key]; !ok {
			return account{}, errNoAccount // how a workload opts in
		}
	}
	for _, key := range slices.Concat(wants.RequiredServiceAccountAnnotationKeys, wants.OptionalServiceAccountAnnotationKeys) {
		if value, ok := sa.Annotations[key]; ok {
			annotations[key] = value
		}
	}
	token, err := c.accounts.Token(ctx, pod, wants.ServiceAccountTokenAudience, 0)
	if err != nil {
		return account{}, err
	}
	out := account{token: token, annotations: annotations, name: accountPrefix + coordinates(sa)}
	out.cacheKey, err = out.keyInCache(wants.CacheType, pod)
	return out, err
}

// keyInCache tells accounts apart, or tokens where an answer is good for one token only. JSON
// keeps what comes from pods from running together.
func (a account) keyInCache(kind kubeletconfig.ServiceAccountTokenCacheType, pod *corev1.Pod) (string, error) {
	parts := []any{a.name, a.annotations}
	if kind == kubeletconfig.TokenServiceAccountTokenCacheType {
		sum := sha256.Sum256([]byte(a.token))
		parts = append(parts, string(pod.UID), hex.EncodeToString(sum[:]))
	}
	key, err := json.Marshal(parts)
	return string(key), err
}

// coordinates name an object of the API, whatever comes after it under its name.
func coordinates(o metav1.Object) string {
	return o.GetNamespace() + "/" + o.GetName() + "/" + string(o.GetUID())
}

// checkTokenAttributes says what is wrong with an entry's tokenAttributes, as a kubelet does.
func checkTokenAttributes(a *kubeletconfig.ServiceAccountTokenAttributes) error {
	if a == nil {
		return nil
	}
	kinds := []kubeletconfig.ServiceAccountTokenCacheType{kubeletconfig.ServiceAccountServiceAccountTokenCacheType, kubeletconfig.TokenServiceAccountTokenCacheType}
	switch {
	case a.ServiceAccountTokenAudience == "":
		return errors.New("tokenAttributes.serviceAccountTokenAudience: must be given")
	case !slices.Contains(kinds, a.CacheType):
		return fmt.Errorf("tokenAttributes.cacheType: %q must be one of %s, %s", a.CacheType, kinds[0], kinds[1])
	case a.RequireServiceAccount == nil:
		return errors.New("tokenAttributes.requireServiceAccount: must be given")
	case !*a.RequireServiceAccount && len(a.RequiredServiceAccountAnnotationKeys) > 0:
		return errors.New("tokenAttributes.requiredServiceAccountAnnotationKeys: need requireServiceAccount: true")
	}
	seen := map[string]bool{}
	check := func(field string, keys []string) error {
		for _, key := range keys {
			if problems := validation.IsQualifiedName(strings.ToLower(key)); len(problems) > 0 {
				return fmt.Errorf("tokenAttributes.%s: %q: %s", field, key, strings.Join(problems, "; "))
			}
			if seen[key] {
				return fmt.Errorf("tokenAttributes.%s: %q is there twice, here or in the other list", field, key)
			}
			seen[key] = true
		}
		return nil
	}
	return cmp.Or(
		check("requiredServiceAccountAnnotationKeys", a.RequiredServiceAccountAnnotationKeys),
		check("optionalServiceAccountAnnotationKeys", a.OptionalServiceAccountAnnotationKeys),
	)
}
