package images

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
)

// credential is a login that may be tried for an image.
type credential struct {
	auth authn.AuthConfig
	// hash names the login in Access; empty for none.
	hash string
	// from names the secret that it is from: its pods may use what it once pulled also when its
	// passwords have changed.
	from string
}

const secretPrefix = "secret:"

// names are those under which Access knows the login.
func (c credential) names() []string {
	if c.from == "" {
		return []string{c.hash}
	}
	return []string{c.hash, c.from}
}

func (c credential) authenticator() authn.Authenticator {
	if c.hash == "" {
		return authn.Anonymous
	}
	return authn.FromConfig(c.auth)
}

// dockerEntry is one registry's login in a dockercfg or dockerconfigjson.
type dockerEntry struct {
	Username      string `json:"username"`
	Password      string `json:"password"`
	Auth          string `json:"auth"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// credentials returns the logins of the secrets that match the repository, most specific
// location first, as the kubelet's keyring orders them; secrets that cannot be read are reported
// and left out.
func credentials(secrets []corev1.Secret, repo string) ([]credential, []error) {
	byKey := map[string][]credential{}
	var errs []error
	for i := range secrets {
		entries, err := readDockerConfig(&secrets[i])
		if err != nil {
			errs = append(errs, fmt.Errorf("read image pull secret %s/%s: %w", secrets[i].Namespace, secrets[i].Name, err))
			continue
		}
		for location, entry := range entries {
			key, err := locationKey(location)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			cred, err := entry.credential()
			if err != nil {
				errs = append(errs, fmt.Errorf("read login for %q: %w", location, err))
				continue
			}
			if secrets[i].UID != "" { // the API's
				cred.from = secretPrefix + coordinates(&secrets[i])
			}
			byKey[key] = append(byKey[key], cred)
		}
	}
	return lookup(byKey, repo), errs
}

func readDockerConfig(s *corev1.Secret) (map[string]dockerEntry, error) {
	if data, ok := s.Data[corev1.DockerConfigJsonKey]; ok && s.Type == corev1.SecretTypeDockerConfigJson {
		var cfg struct {
			Auths map[string]dockerEntry `json:"auths"`
		}
		return cfg.Auths, unmarshalQuietly(data, &cfg)
	}
	if data, ok := s.Data[corev1.DockerConfigKey]; ok && s.Type == corev1.SecretTypeDockercfg {
		var cfg map[string]dockerEntry
		err := unmarshalQuietly(data, &cfg)
		return cfg, err
	}
	return nil, nil
}

// unmarshalQuietly keeps the secret's bytes out of the error.
func unmarshalQuietly(data []byte, into any) error {
	if json.Unmarshal(data, into) != nil {
		return fmt.Errorf("not a valid Docker config")
	}
	return nil
}

func (e dockerEntry) credential() (credential, error) {
	a := authn.AuthConfig{Username: e.Username, Password: e.Password, IdentityToken: e.IdentityToken, RegistryToken: e.RegistryToken}
	if e.Auth != "" {
		plain, err := base64.StdEncoding.DecodeString(e.Auth)
		if err != nil {
			plain, err = base64.RawStdEncoding.DecodeString(strings.TrimRight(e.Auth, "="))
		}
		user, password, ok := strings.Cut(string(plain), ":")
		if err != nil || !ok {
			return credential{}, fmt.Errorf("unable to parse auth field, must be formatted as base64(username:password)")
		}
		a.Username, a.Password = user, password
	}
	sum := sha256.Sum256([]byte(strings.Join([]string{a.Username, a.Password, a.IdentityToken, a.RegistryToken}, "\x00")))
	return credential{auth: a, hash: hex.EncodeToString(sum[:])}, nil
}

// locationKey reduces https://host/v1/path to host/path.
func locationKey(location string) (string, error) {
	if !strings.HasPrefix(location, "https://") && !strings.HasPrefix(location, "http://") {
		location = "https://" + location
	}
	u, err := url.Parse(location)
	if err != nil {
		return "", fmt.Errorf("read registry location %q: not a URL", location)
	}
	p := u.Path
	if strings.HasPrefix(p, "/v2/") || strings.HasPrefix(p, "/v1/") {
		p = p[3:]
	}
	if p == "/" {
		p = ""
	}
	return u.Host + p, nil
}

const dockerHubKey = "index.docker.io"

func lookup(byKey map[string][]credential, repo string) []credential {
	keys := make([]string, 0, len(byKey))
	for k := range byKey {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	slices.Reverse(keys)
	var out []credential
	for _, k := range keys {
		if locationMatches(k, repo) {
			out = append(out, byKey[k]...)
		}
	}
	if len(out) == 0 && strings.HasPrefix(repo, "docker.io/") {
		out = byKey[dockerHubKey]
	}
	return out
}

// locationMatches compares host parts as globs, ports exactly, paths as prefix.
func locationMatches(location, repo string) bool {
	lHost, lPath := cutHost(location)
	rHost, rPath := cutHost(repo)
	lName, lPort := splitPort(lHost)
	rName, rPort := splitPort(rHost)
	lParts, rParts := strings.Split(lName, "."), strings.Split(rName, ".")
	if lPort != rPort || len(lParts) != len(rParts) || !strings.HasPrefix(rPath, lPath) {
		return false
	}
	for i, glob := range lParts {
		if ok, err := path.Match(glob, rParts[i]); err != nil || !ok {
			return false
		}
	}
	return true
}

func cutHost(s string) (host, rest string) {
	if i := strings.IndexByte(s, '/'); i >= 0 {
		return s[:i], s[i:]
	}
	return s, ""
}

func splitPort(host string) (name, port string) {
	name, port, err := net.SplitHostPort(host)
	if err != nil {
		return host, ""
	}
	return name, port
}
