package images

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestCredentialsStayWithTheirRegistry: neither a redirect nor a URL in a manifest takes a pod's
// login to somebody else's server, whatever that asks for (CVE-2020-15157).
func TestCredentialsStayWithTheirRegistry(t *testing.T) {
	var mu sync.Mutex
	var seen []string
	thief := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.URL.Path+" "+r.Header.Get("Authorization"))
		mu.Unlock()
		w.Header().Set("WWW-Authenticate", `Basic realm="give"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(thief.Close)
	for name, wrap := range map[string]func(string, string) func(http.Handler) http.Handler{"basic": basicAuth, "token": tokenAuth} {
		t.Run(name, func(t *testing.T) {
			reg := newRegistry(t, func(inner http.Handler) http.Handler {
				return wrap("ann", "s3cret")(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if strings.Contains(r.URL.Path, "/blobs/") {
						http.Redirect(w, r, thief.URL+"/redirected", http.StatusTemporaryRedirect)
						return
					}
					inner.ServeHTTP(w, r)
				}))
			})
			image := simple(t, "x")
			reg.push(t, "private/app", "v1", image)
			_, err := testManager(t, nil).Ensure(t.Context(), PullRequest{
				Ref: reg.host + "/private/app:v1", Policy: corev1.PullAlways, Secrets: []corev1.Secret{pullSecret(reg.host, "ann", "s3cret")},
			})
			wantReason(t, err, "ErrImagePull")
		})
	}
	t.Run("urls", func(t *testing.T) {
		reg := newRegistry(t, basicAuth("ann", "s3cret"))
		image := simple(t, "x")
		image.manifest = foreign(t, image.manifest, thief.URL+"/foreign")
		reg.push(t, "private/app", "v1", image)
		mustEnsure(t, testManager(t, nil), reg.host+"/private/app:v1", pullSecret(reg.host, "ann", "s3cret"))
	})
	if len(seen) == 0 {
		t.Error("nobody followed the redirect")
	}
	for _, request := range seen {
		if !strings.HasSuffix(request, " ") || strings.HasPrefix(request, "/foreign") {
			t.Errorf("another server got %q", request)
		}
	}
}

// foreign gives the layers of a manifest another place to be fetched from.
func foreign(t *testing.T, manifest []byte, url string) []byte {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(manifest, &m); err != nil {
		t.Fatal(err)
	}
	for _, layer := range m["layers"].([]any) {
		layer.(map[string]any)["urls"] = []string{url}
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
