package registry

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"
)

// privatePrefix begins the repositories that need a user.
const privatePrefix = "private/"

// tokenLifetime is what Docker Hub gives.
const tokenLifetime = 5 * time.Minute

// mirror lets everybody pull what is public, and nothing else.
func mirror(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "this mirror is read-only")
		case strings.HasPrefix(repository(r), privatePrefix):
			refuse(w, http.StatusForbidden, "DENIED", "not served without credentials")
		default:
			next.ServeHTTP(w, r)
		}
	})
}

// tokens is the distribution specification's token authentication: a request
// without a token is told where to get one.
type tokens struct {
	users map[string]string
	next  http.Handler

	mu     sync.Mutex
	issued map[string]grant
}

// grant is what a token stands for; user "" is anonymous.
type grant struct {
	user    string
	expires time.Time
}

func newTokens(users map[string]string, next http.Handler) *tokens {
	return &tokens{users: users, next: next, issued: map[string]grant{}}
}

// ServeHTTP guards next and answers /token itself.
func (t *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == "/token" {
		t.issue(w, r)
		return
	}
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	given, valid := t.find(token)
	reading := r.Method == http.MethodGet || r.Method == http.MethodHead
	public := reading && !strings.HasPrefix(repository(r), privatePrefix)
	if !valid || (given.user == "" && !public) {
		t.challenge(w, r, reading)
		return
	}
	t.next.ServeHTTP(w, r)
}

func (t *tokens) find(token string) (grant, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	given, found := t.issued[token]
	return given, found && time.Now().Before(given.expires)
}

func (t *tokens) challenge(w http.ResponseWriter, r *http.Request, reading bool) {
	challenge := fmt.Sprintf(`Bearer realm="https://%s/token",service="vk-metal-rig"`, r.Host)
	if repo := repository(r); repo != "" {
		actions := "pull"
		if !reading {
			actions = "pull,push"
		}
		challenge += fmt.Sprintf(`,scope="repository:%s:%s"`, repo, actions)
	}
	w.Header().Set("WWW-Authenticate", challenge)
	refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "authentication required")
}

func (t *tokens) issue(w http.ResponseWriter, r *http.Request) {
	user, password, given := r.BasicAuth()
	if given && !t.known(user, password) {
		w.Header().Set("WWW-Authenticate", `Basic realm="vk-metal-rig"`)
		refuse(w, http.StatusUnauthorized, "UNAUTHORIZED", "incorrect username or password")
		return
	}
	token := rand.Text()
	t.mu.Lock()
	for old, grant := range t.issued {
		if time.Now().After(grant.expires) {
			delete(t.issued, old)
		}
	}
	t.issued[token] = grant{user: user, expires: time.Now().Add(tokenLifetime)}
	t.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"token": token, "access_token": token, "expires_in": int(tokenLifetime.Seconds()),
		"issued_at": time.Now().UTC().Format(time.RFC3339),
	})
}

func (t *tokens) known(user, password string) bool {
	want, found := t.users[user]
	return found && subtle.ConstantTimeCompare([]byte(want), []byte(password)) == 1
}

// repository is the request's repository, or "" for /v2/ and the like.
func repository(r *http.Request) string {
	path, _ := strings.CutPrefix(r.URL.Path, "/v2/")
	for _, part := range []string{"/manifests/", "/blobs/", "/tags/", "/referrers/"} {
		if i := strings.Index(path, part); i >= 0 {
			return path[:i]
		}
	}
	return ""
}

// refuse answers with an error in the distribution specification's form.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{
		"errors": []map[string]string{{"code": code, "message": message}},
	})
}
