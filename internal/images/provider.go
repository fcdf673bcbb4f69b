package images

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	corev1 "k8s.io/api/core/v1"
	kubeletconfig "k8s.io/kubelet/config/v1"
	credentialapi "k8s.io/kubelet/pkg/apis/credentialprovider/v1"
	"sigs.k8s.io/yaml"

	"github.com/vk-metal/vk-metal/internal/keylock"
)

// CredentialProviders are a kubelet's credential provider plugins: programs that are asked for
// logins of registries (credentialprovider.kubelet.k8s.io/v1). It is safe for concurrent use.
type CredentialProviders struct {
	binDir    string
	providers []kubeletconfig.CredentialProvider
	timeout   time.Duration
	accounts  Accounts

	flight keylock.Mutex
	mu     sync.Mutex
	cache  map[string]providedLogins
}

// providedLogins are a plugin's answer for as long as it may be used.
type providedLogins struct {
	auth  map[string]credentialapi.AuthConfig
	until time.Time
}

// providerTimeout bounds one call of a plugin, as a kubelet's does.
const providerTimeout = time.Minute

const credentialVersion = "credentialprovider.kubelet.k8s.io/v1"

// LoadCredentialProviders reads a kubelet's CredentialProviderConfig; the programs are in binDir.
func LoadCredentialProviders(path, binDir string) (*CredentialProviders, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read credential providers: %w", err)
	}
	var config kubeletconfig.CredentialProviderConfig
	if err := yaml.UnmarshalStrict(data, &config); err != nil {
		return nil, fmt.Errorf("read credential providers %s: %w", path, err)
	}
	if config.Kind != "CredentialProviderConfig" || config.APIVersion != kubeletconfig.SchemeGroupVersion.String() {
		return nil, fmt.Errorf("read credential providers %s: it is a %s %s, not a CredentialProviderConfig of %s", path, config.APIVersion, config.Kind, kubeletconfig.SchemeGroupVersion)
	}
	var errs []error
	names := map[string]bool{}
	for i := range config.Providers {
		p := &config.Providers[i]
		if err := checkProvider(p, binDir); err != nil {
			errs = append(errs, fmt.Errorf("providers[%d] %q: %w", i, p.Name, err))
		}
		if names[p.Name] {
			errs = append(errs, fmt.Errorf("providers[%d] %q: the name is there twice", i, p.Name))
		}
		names[p.Name] = true
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("read credential providers %s: %w", path, err)
	}
	return &CredentialProviders{binDir: binDir, providers: config.Providers, timeout: providerTimeout, cache: map[string]providedLogins{}}, nil
}

// checkProvider says what is wrong with an entry, by field.
func checkProvider(p *kubeletconfig.CredentialProvider, binDir string) error {
	switch {
	case p.Name == "" || p.Name != filepath.Base(p.Name) || p.Name == "." || p.Name == ".." || strings.ContainsAny(p.Name, " \t\n"):
		return errors.New("name: must be that of a program in the directory of plugins")
	case len(p.MatchImages) == 0:
		return errors.New("matchImages: must not be empty")
	case p.DefaultCacheDuration == nil || p.DefaultCacheDuration.Duration < 0:
		return errors.New("defaultCacheDuration: must be given and not be negative")
	case p.APIVersion != credentialVersion:
		return fmt.Errorf("apiVersion: %q is not supported, %s is", p.APIVersion, credentialVersion)
	}
	if err := checkTokenAttributes(p.TokenAttributes); err != nil {
		return err
	}
	for _, match := range p.MatchImages {
		if _, err := locationKey(match); err != nil {
			return fmt.Errorf("matchImages: %w", err)
		}
	}
	if _, err := exec.LookPath(filepath.Join(binDir, p.Name)); err != nil {
		return fmt.Errorf("name: %w", err)
	}
	return nil
}

// UseAccounts gives plugins that want them the tokens of pods' service accounts. It is to be
// called before the first pull.
func (c *CredentialProviders) UseAccounts(accounts Accounts) {
	if c != nil {
		c.accounts = accounts
	}
}

// logins asks the plugins that match the repository and are for the pod, which may be nil, in
// their order. What fails is told beside what the others say.
func (c *CredentialProviders) logins(ctx context.Context, repo string, pod *corev1.Pod) (list []credential, errs []error) {
	if c == nil {
		return nil, nil
	}
	for i := range c.providers {
		p := &c.providers[i]
		if !slices.ContainsFunc(p.MatchImages, func(match string) bool { return matchesRepo(match, repo) }) {
			continue
		}
		of, err := c.accountFor(ctx, p, pod)
		if errors.Is(err, errNoAccount) {
			continue
		}
		var auth map[string]credentialapi.AuthConfig
		if err == nil {
			auth, err = c.ask(ctx, p, repo, of)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("credential provider %s: %w", p.Name, err))
			continue
		}
		for _, location := range slices.Backward(sortedLocations(auth)) {
			if matchesRepo(location, repo) {
				list = append(list, of.credential(p.Name, auth[location]))
			}
		}
	}
	return list, errs
}

func sortedLocations(auth map[string]credentialapi.AuthConfig) []string {
	var list []string
	for location := range auth {
		list = append(list, location)
	}
	slices.Sort(list)
	return list
}

func matchesRepo(match, repo string) bool {
	key, err := locationKey(match)
	return err == nil && locationMatches(key, repo)
}

// credential is a login of the account, or of the node itself: its passwords change. What was
// pulled with it pods of the account may use, or all pods (a kubelet's NodePodsAccessible).
func (a account) credential(provider string, auth credentialapi.AuthConfig) credential {
	return credential{
		auth: authn.AuthConfig{Username: auth.Username, Password: auth.Password},
		hash: cmp.Or(a.name, nodeCredentialPrefix+provider),
	}
}

const nodeCredentialPrefix = "node:"

// ask answers from the cache or calls the plugin; of several callers for one answer one does.
func (c *CredentialProviders) ask(ctx context.Context, p *kubeletconfig.CredentialProvider, repo string, of account) (map[string]credentialapi.AuthConfig, error) {
	unlock, err := c.flight.LockContext(ctx, p.Name+" "+of.cacheKey)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if auth, ok := c.cached(p.Name, repo, of); ok {
		return auth, nil
	}
	answer, err := c.call(ctx, p, repo, of)
	if err != nil {
		return nil, err
	}
	if err := mayKeep(p, answer, of); err != nil {
		return nil, err
	}
	life := p.DefaultCacheDuration.Duration
	if answer.CacheDuration != nil {
		life = answer.CacheDuration.Duration
	}
	key, err := cacheKey(answer.CacheKeyType, p.Name, repo, of)
	if err != nil {
		return nil, err
	}
	if life > 0 {
		c.mu.Lock()
		c.cache[key] = providedLogins{answer.Auth, time.Now().Add(life)}
		c.mu.Unlock()
	}
	return answer.Auth, nil
}

// mayKeep refuses a pod's token as the password of its whole account, as a kubelet does.
func mayKeep(p *kubeletconfig.CredentialProvider, answer *credentialapi.CredentialProviderResponse, of account) error {
	if of.token == "" || p.TokenAttributes.CacheType == kubeletconfig.TokenServiceAccountTokenCacheType {
		return nil
	}
	for _, auth := range answer.Auth {
		if auth.Password == of.token {
			return fmt.Errorf("its answer has the pod's token as password, which needs tokenAttributes.cacheType: %s", kubeletconfig.TokenServiceAccountTokenCacheType)
		}
	}
	return nil
}

// cacheKey is for whom the answer is good.
func cacheKey(kind credentialapi.PluginCacheKeyType, provider, repo string, of account) (string, error) {
	whom := " "
	if of.cacheKey != "" {
		whom = " " + of.cacheKey + " "
	}
	switch kind {
	case credentialapi.ImagePluginCacheKeyType:
		return provider + whom + "image " + repo, nil
	case credentialapi.RegistryPluginCacheKeyType:
		host, _ := cutHost(repo)
		return provider + whom + "registry " + host, nil
	case credentialapi.GlobalPluginCacheKeyType:
		return provider + whom + "global", nil
	}
	return "", fmt.Errorf("its answer has an unknown cacheKeyType %q", kind)
}

func (c *CredentialProviders) cached(provider, repo string, of account) (map[string]credentialapi.AuthConfig, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	for key, held := range c.cache {
		if now.After(held.until) {
			delete(c.cache, key)
		}
	}
	for _, kind := range []credentialapi.PluginCacheKeyType{
		credentialapi.ImagePluginCacheKeyType, credentialapi.RegistryPluginCacheKeyType, credentialapi.GlobalPluginCacheKeyType,
	} {
		if key, err := cacheKey(kind, provider, repo, of); err == nil {
			if held, ok := c.cache[key]; ok {
				return held.auth, true
			}
		}
	}
	return nil, false
}

// maxAnswer bounds what is read of a plugin.
const maxAnswer = 1 << 20

// call runs the plugin once: the request is its input, the answer its output.
func (c *CredentialProviders) call(ctx context.Context, p *kubeletconfig.CredentialProvider, repo string, of account) (*credentialapi.CredentialProviderResponse, error) {
	request := credentialapi.CredentialProviderRequest{Image: repo, ServiceAccountToken: of.token, ServiceAccountAnnotations: of.annotations}
	request.APIVersion, request.Kind = credentialVersion, "CredentialProviderRequest"
	input, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	stdout, stderr := &boundedBuffer{tooMuch: cancel}, &boundedBuffer{tooMuch: cancel}
	cmd := exec.CommandContext(ctx, filepath.Join(c.binDir, p.Name), p.Args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(input), stdout, stderr
	cmd.WaitDelay = time.Second
	cmd.Env = os.Environ()
	for _, e := range p.Env {
		cmd.Env = append(cmd.Env, e.Name+"="+e.Value)
	}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("error execing credential provider plugin %s for image %s: %w: %s", p.Name, repo, err, strings.TrimSpace(string(stderr.data)))
	}
	answer := &credentialapi.CredentialProviderResponse{}
	if json.Unmarshal(stdout.data, answer) != nil { // its text may hold passwords
		return nil, errors.New("its answer is not a CredentialProviderResponse")
	}
	if answer.APIVersion != credentialVersion || answer.Kind != "CredentialProviderResponse" {
		return nil, fmt.Errorf("its answer is a %q %q, not a CredentialProviderResponse of %s", answer.APIVersion, answer.Kind, credentialVersion)
	}
	return answer, nil
}

// boundedBuffer keeps up to maxAnswer bytes and then ends who writes. It is no bytes.Buffer: that
// would read all there is, past Write (io.ReaderFrom).
type boundedBuffer struct {
	data    []byte
	tooMuch func()
}

// Write implements io.Writer.
func (b *boundedBuffer) Write(data []byte) (int, error) {
	if len(b.data)+len(data) > maxAnswer {
		b.tooMuch()
		return 0, errors.New("it writes too much")
	}
	b.data = append(b.data, data...)
	return len(data), nil
}
