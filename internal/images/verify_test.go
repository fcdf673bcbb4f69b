package images

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// asks is a pull for a pod of an account, if the image is not there.
func asks(ref string, pod *corev1.Pod, secrets ...corev1.Secret) PullRequest {
	return PullRequest{Ref: ref, Policy: corev1.PullIfNotPresent, Secrets: secrets, Pod: pod}
}

func (s secretOf) with(user, password string) corev1.Secret {
	secret := pullSecret(s.host, user, password)
	secret.Namespace, secret.Name, secret.UID = "ns", s.name, types.UID(s.name+"-uid")
	return secret
}

type secretOf struct{ host, name string }

// TestVerificationPolicies: who may use an image that is here, by policy, and by how it came.
func TestVerificationPolicies(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	reg.push(t, "private/app", "v1", simple(t, "x"))
	private := reg.host + "/private/app:v1"
	imported := reg.host + "/imported/app:v1"
	for _, c := range []struct {
		verify            Verification
		private, imported bool
	}{
		{Verification{}, false, true},
		{Verification{Policy: NeverVerifyPreloadedImages}, false, true},
		{Verification{Policy: NeverVerify}, true, true},
		{Verification{Policy: AlwaysVerify}, false, false},
		{Verification{Policy: NeverVerifyAllowlistedImages}, false, false},
		{Verification{Policy: NeverVerifyAllowlistedImages, Allowlist: []string{reg.host + "/private/*"}}, true, false},
		{Verification{Policy: NeverVerifyAllowlistedImages, Allowlist: []string{reg.host + "/imported/app"}}, false, true},
	} {
		m := testManager(t, func(o *Options) { o.Verify = c.verify })
		mustEnsure(t, m, private, pullSecret(reg.host, "ann", "s3cret"))
		if _, err := m.Import(t.Context(), bytes.NewReader(ociLayout(t, imported, simple(t, "y"))), ""); err != nil {
			t.Fatal(err)
		}
		for ref, want := range map[string]bool{private: c.private, imported: c.imported} {
			req := asks(ref, podOf("", "stranger"))
			if _, err := m.Ensure(t.Context(), req); (err == nil) != want {
				t.Errorf("%+v: %s: %v, want it given: %t", c.verify, ref, err, want)
			}
			req.Policy = corev1.PullNever
			if _, err := m.Ensure(t.Context(), req); (err == nil) != want {
				t.Errorf("%+v: %s, never pulled: %v, want it given: %t", c.verify, ref, err, want)
			}
		}
	}
}

func TestAllowlists(t *testing.T) {
	for _, c := range []struct {
		pattern, ref string
		want         bool
	}{
		{"ubuntu", "docker.io/library/ubuntu", true},
		{"ubuntu", "docker.io/library/ubuntu-evil", false},
		{"docker.io/library/*", "docker.io/library/ubuntu", true},
		{"team/*", "docker.io/team/app", true},
		{"reg.example:5000/*", "reg.example:5000/any/app", true},
		{"reg.example:5000/*", "reg.example/any/app", false},
		{"reg.example/team/*", "reg.example/team", false},
		{"reg.example/team/*", "reg.example/team-evil/app", false},
		{"reg.example/team/*", "reg.example/team/sub/app", true},
		{"reg.example/team", "reg.example/team/app", false},
	} {
		if got := allowlists(c.pattern, c.ref); got != c.want {
			t.Errorf("%s allows %s: %t", c.pattern, c.ref, got)
		}
	}
}

// TestAccessIsOfARepository: that an image is everybody's under one name does not open the name
// of somebody's private one, whose content is the same.
func TestAccessIsOfARepository(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	public := newRegistry(t, nil)
	image := simple(t, "x")
	reg.push(t, "private/app", "v1", image)
	public.push(t, "mine/app", "v1", image)
	m := testManager(t, nil)
	private := reg.host + "/private/app:v1"
	mustEnsure(t, m, private, pullSecret(reg.host, "ann", "s3cret"))
	mustEnsure(t, m, public.host+"/mine/app:v1")
	_, err := m.Ensure(t.Context(), asks(private, podOf("", "stranger")))
	wantReason(t, err, "ErrImagePull")
}

// TestSecretsKeepTheirAccess: pods of a secret may use what it has pulled after its password was
// changed, those of another one not.
func TestSecretsKeepTheirAccess(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	reg.push(t, "private/app", "v1", simple(t, "x"))
	ref, own, other := reg.host+"/private/app:v1", secretOf{reg.host, "own"}, secretOf{reg.host, "other"}
	m := testManager(t, nil)
	mustEnsure(t, m, ref, own.with("ann", "s3cret"))
	before := reg.requests("")
	if _, err := m.Ensure(t.Context(), asks(ref, podOf("", "a"), own.with("ann", "changed"))); err != nil || reg.requests("") != before {
		t.Errorf("%v, %d requests", err, reg.requests("")-before)
	}
	_, err := m.Ensure(t.Context(), asks(ref, podOf("", "b"), other.with("ann", "wrong")))
	wantReason(t, err, "ErrImagePull")
}

// TestAccountsProveAccess: what was pulled with an account's login is its pods', and the plugin is
// asked for that, not the registry.
func TestAccountsProveAccess(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	reg.push(t, "private/app", "v1", simple(t, "x"))
	providers, _ := provideTo(t, answer("Global", "", `"`+reg.host+`":{"username":"ann","password":"s3cret"}`), `["*.example.com", "reg.example.org:5000/team"]`, `["`+reg.host+`"]`)
	m := testManager(t, func(o *Options) { o.Providers = providers })
	ref := reg.host + "/private/app:v1"
	if _, err := m.Ensure(t.Context(), asks(ref, podOf("builder", "one"))); err != nil {
		t.Fatal(err)
	}
	before := reg.requests("")
	if _, err := m.Ensure(t.Context(), asks(ref, podOf("builder", "two"))); err != nil || reg.requests("") != before {
		t.Errorf("a pod of the account: %v, %d requests", err, reg.requests("")-before)
	}
	_, err := m.Ensure(t.Context(), asks(ref, podOf("plain", "three")))
	wantReason(t, err, "ErrImagePull")
	if _, err := m.Ensure(t.Context(), asks(ref, podOf("other", "four"))); err != nil || reg.requests("") == before {
		t.Errorf("another account that may pull: %v, %d requests", err, reg.requests("")-before)
	}
}

// TestBackOffIsThePods: a stranger who keeps failing holds up nobody who may have the image.
func TestBackOffIsThePods(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	reg.push(t, "private/app", "v1", simple(t, "x"))
	m := testManager(t, func(o *Options) { o.BackOff, o.MaxBackOff = time.Hour, time.Hour })
	ref := reg.host + "/private/app:v1"
	_, err := m.Ensure(t.Context(), asks(ref, podOf("", "stranger")))
	wantReason(t, err, "ErrImagePull")
	_, err = m.Ensure(t.Context(), asks(ref, podOf("", "stranger")))
	wantReason(t, err, "ImagePullBackOff")
	if _, err := m.Ensure(t.Context(), asks(ref, podOf("", "owner"), pullSecret(reg.host, "ann", "s3cret"))); err != nil {
		t.Error(err)
	}
}

// TestFailuresOfPodsAreForgotten: pods come and go, what is kept of them is bounded.
func TestFailuresOfPodsAreForgotten(t *testing.T) {
	reg := newRegistry(t, basicAuth("ann", "s3cret"))
	m := testManager(t, func(o *Options) { o.BackOff, o.MaxBackOff = 1, 1 })
	for i := range 20 {
		_, err := m.Ensure(t.Context(), asks(reg.host+"/private/app:v1", podOf("", fmt.Sprint(i))))
		wantReason(t, err, "ErrImagePull")
	}
	kept := 0
	m.lastErr.m.Range(func(_, _ any) bool { kept++; return true })
	if kept > 1 {
		t.Errorf("failures of %d pods are kept", kept)
	}
}

// TestRecordsOfEarlierVersions had one access for all names.
func TestRecordsOfEarlierVersions(t *testing.T) {
	reg := newRegistry(t, nil)
	reg.push(t, "team/app", "v1", simple(t, "x"))
	m := testManager(t, nil)
	ref := reg.host + "/team/app:v1"
	mustEnsure(t, m, ref)
	records, err := m.Records()
	if err != nil || len(records) != 1 {
		t.Fatal(records, err)
	}
	path := m.index.file(records[0].ID)
	for _, access := range []string{`{"anyone":true}`, `{"credentials":["c"]}`} {
		var stored map[string]json.RawMessage
		data, err := os.ReadFile(path)
		if err != nil || json.Unmarshal(data, &stored) != nil {
			t.Fatal(err)
		}
		delete(stored, "accessByRepository")
		stored["access"] = json.RawMessage(access)
		if data, err = json.Marshal(stored); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := readRecord(path)
		got := r.Access[strings.TrimSuffix(ref, ":v1")]
		if err != nil || len(r.Access) != 1 || got.Anyone != strings.Contains(access, "anyone") || got.Preloaded || slices.Contains(got.Credentials, "c") == got.Anyone {
			t.Errorf("%s became %+v (%v)", access, r.Access, err)
		}
	}
}
