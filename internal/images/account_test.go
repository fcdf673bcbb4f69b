package images

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// accountsOf are service accounts by name, with their annotations; tokens say whose they are.
type accountsOf map[string]map[string]string

func (a accountsOf) ServiceAccount(_ context.Context, namespace, name string) (*corev1.ServiceAccount, error) {
	annotations, ok := a[name]
	if !ok {
		return nil, errors.New("no such account")
	}
	return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name + "-uid"), Annotations: annotations}}, nil
}

func (a accountsOf) Token(_ context.Context, pod *corev1.Pod, audience string, _ int64) (string, error) {
	return audience + "/" + pod.Spec.ServiceAccountName + "/" + string(pod.UID), nil
}

func podOf(account, uid string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: uid, UID: types.UID(uid)}, Spec: corev1.PodSpec{ServiceAccountName: account}}
}

const tokenEntry = plainEntry + `
tokenAttributes:
  serviceAccountTokenAudience: reg
  cacheType: ServiceAccount
  requireServiceAccount: true
  requiredServiceAccountAnnotationKeys: [example.com/role]
  optionalServiceAccountAnnotationKeys: [example.com/zone]`

// provideTo makes such a plugin; changes are of its entry.
func provideTo(t *testing.T, script string, changes ...string) (*CredentialProviders, string) {
	t.Helper()
	config, dir := provide(t, script, strings.NewReplacer(changes...).Replace(tokenEntry))
	c, err := LoadCredentialProviders(config, dir)
	if err != nil {
		t.Fatal(err)
	}
	c.UseAccounts(accountsOf{
		"builder": {"example.com/role": "build", "example.com/zone": "a", "example.com/else": "no"},
		"other":   {"example.com/role": "build"}, "plain": {},
	})
	return c, dir
}

const repoOfTests = "a.example.com/x"

func TestPluginsGetTheAccount(t *testing.T) {
	c, dir := provideTo(t, answer("Global", "", `"a.example.com":{"username":"u","password":"p"}`))
	list, errs := c.logins(t.Context(), repoOfTests, podOf("builder", "one"))
	if len(list) != 1 || len(errs) > 0 || list[0].hash != "account:ns/builder/builder-uid" {
		t.Fatalf("%+v %v", list, errs)
	}
	request, err := os.ReadFile(filepath.Join(dir, "request"))
	if want := `"serviceAccountToken":"reg/builder/one","serviceAccountAnnotations":{"example.com/role":"build","example.com/zone":"a"}`; err != nil || !strings.Contains(string(request), want) {
		t.Errorf("request %s, want %s (%v)", request, want, err)
	}
	for pod, want := range map[*corev1.Pod]int{podOf("plain", "one"): 0, podOf("", "one"): 0, nil: 0, podOf("gone", "one"): 1} {
		if list, errs := c.logins(t.Context(), repoOfTests, pod); len(list) > 0 || len(errs) != want {
			t.Errorf("%v: %+v %v, want %d errors", pod, list, errs, want)
		}
	}
	if got := calls(t, dir); got != 1 {
		t.Errorf("called %d times", got)
	}
}

func TestAnswersAreKeptByAccountOrToken(t *testing.T) {
	for kind, want := range map[string]int{"ServiceAccount": 2, "Token": 3} {
		t.Run(kind, func(t *testing.T) {
			c, dir := provideTo(t, answer("Global", "", `"a.example.com":{"username":"u"}`), "cacheType: ServiceAccount", "cacheType: "+kind)
			for _, pod := range []*corev1.Pod{podOf("builder", "one"), podOf("builder", "one"), podOf("builder", "two"), podOf("other", "three")} {
				if list, errs := c.logins(t.Context(), repoOfTests, pod); len(list) != 1 || len(errs) > 0 {
					t.Fatalf("%v %v", list, errs)
				}
			}
			if got := calls(t, dir); got != want {
				t.Errorf("called %d times, want %d", got, want)
			}
		})
	}
}

// TestTokensAreNoPasswordsOfAccounts: what is one pod's is not kept for others.
func TestTokensAreNoPasswordsOfAccounts(t *testing.T) {
	echo := answer("Global", "", `"a.example.com":{"username":"u","password":"reg/builder/one"}`)
	for kind, ok := range map[string]bool{"ServiceAccount": false, "Token": true} {
		c, _ := provideTo(t, echo, "cacheType: ServiceAccount", "cacheType: "+kind)
		list, errs := c.logins(t.Context(), repoOfTests, podOf("builder", "one"))
		if ok != (len(list) == 1) || ok != (len(errs) == 0) {
			t.Errorf("%s: %v %v", kind, list, errs)
		}
		for _, err := range errs {
			if strings.Contains(err.Error(), "reg/builder") {
				t.Errorf("the token is told: %v", err)
			}
		}
	}
}

// TestPluginsThatNeedNoAccount: pods without one are asked for, without a token, as the node.
func TestPluginsThatNeedNoAccount(t *testing.T) {
	c, dir := provideTo(t, answer("Global", "", `"a.example.com":{"username":"u"}`),
		"requireServiceAccount: true", "requireServiceAccount: false", "required", "optional", "  optionalServiceAccountAnnotationKeys: [example.com/zone]", "")
	for _, pod := range []*corev1.Pod{nil, podOf("", "static")} {
		if list, errs := c.logins(t.Context(), repoOfTests, pod); len(list) != 1 || len(errs) > 0 || list[0].hash != "node:plugin" {
			t.Errorf("%v: %+v %v", pod, list, errs)
		}
	}
	if request, err := os.ReadFile(filepath.Join(dir, "request")); err != nil || strings.Contains(string(request), "serviceAccount") {
		t.Errorf("request %s %v", request, err)
	}
}

func TestBadTokenAttributes(t *testing.T) {
	for change, want := range map[string]string{
		"serviceAccountTokenAudience: reg -> serviceAccountTokenAudience: ''":     "serviceAccountTokenAudience",
		"cacheType: ServiceAccount -> cacheType: Pod":                             "cacheType",
		"  requireServiceAccount: true\n -> ":                                     "requireServiceAccount",
		"requireServiceAccount: true -> requireServiceAccount: false":             "requiredServiceAccountAnnotationKeys",
		"[example.com/zone] -> [example.com/role]":                                "optionalServiceAccountAnnotationKeys",
		"[example.com/role] -> [example.com/role, example.com/role]":              "requiredServiceAccountAnnotationKeys",
		"[example.com/zone] -> ['a b']":                                           "optionalServiceAccountAnnotationKeys",
		"cacheType: ServiceAccount -> cacheType: ServiceAccount\n  unknownKey: 1": "unknownKey",
	} {
		from, to, _ := strings.Cut(change, " -> ")
		config, dir := provide(t, "", strings.Replace(tokenEntry, from, to, 1))
		if _, err := LoadCredentialProviders(config, dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", change, err)
		}
	}
}
