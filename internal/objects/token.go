package objects

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// maxTokenAge is after which a token is renewed whatever its life, as the kubelet does.
	maxTokenAge = 24 * time.Hour
	// tokenJitter spreads renewals of pods started together.
	tokenJitter = 10 * time.Second
	// tokenRetry is when a failed renewal is tried again.
	tokenRetry = 30 * time.Second
)

type tokenKey struct {
	podUID, audience string
	expiration       int64
}

type token struct {
	value            string
	refresh, expires time.Time
	timer            *time.Timer
}

// tokenCache holds tokens and tells the pod when one is due for renewal.
type tokenCache struct {
	tell func(podUID string)

	mu     sync.Mutex
	closed bool
	tokens map[tokenKey]*token
}

func (t *tokenCache) init(tell func(string)) { t.tell, t.tokens = tell, map[tokenKey]*token{} }

func (t *tokenCache) get(k tokenKey) (token, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if tok := t.tokens[k]; tok != nil {
		return *tok, true
	}
	return token{}, false
}

// put keeps the token and arms the timer for its renewal.
func (t *tokenCache) put(k tokenKey, tok token) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.tokens[k]; old != nil {
		old.timer.Stop()
	}
	if t.closed {
		return
	}
	tok.timer = time.AfterFunc(time.Until(tok.refresh), func() { t.tell(k.podUID) })
	t.tokens[k] = &tok
}

// forget drops the tokens of a pod.
func (t *tokenCache) forget(podUID string) {
	t.drop(func(k tokenKey) bool { return k.podUID == podUID })
}

// clear drops everything, for good.
func (t *tokenCache) clear() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.drop(func(tokenKey) bool { return true })
}

func (t *tokenCache) drop(which func(tokenKey) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for k, tok := range t.tokens {
		if which(k) {
			tok.timer.Stop()
			delete(t.tokens, k)
		}
	}
}

// Token implements Source. A token that cannot be renewed is used until it expires.
func (c *Cache) Token(ctx context.Context, pod *corev1.Pod, audience string, expirationSeconds int64) (string, error) {
	k := tokenKey{string(pod.UID), audience, expirationSeconds}
	old, ok := c.tokens.get(k)
	now := time.Now()
	if ok && now.Before(old.refresh) {
		return old.value, nil
	}
	tok, err := c.requestToken(ctx, pod, audience, expirationSeconds)
	if err == nil {
		c.tokens.put(k, tok)
		return tok.value, nil
	}
	err = fmt.Errorf("request token of service account %s/%s: %w", pod.Namespace, serviceAccount(pod), err)
	if !ok || now.After(old.expires) {
		return "", err
	}
	c.log.WarnContext(ctx, "Token not renewed", "pod", pod.Namespace+"/"+pod.Name, "uid", string(pod.UID), "error", err)
	old.refresh = now.Add(tokenRetry)
	c.tokens.put(k, old)
	return old.value, nil
}

func serviceAccount(pod *corev1.Pod) string {
	if pod.Spec.ServiceAccountName == "" {
		return "default"
	}
	return pod.Spec.ServiceAccountName
}

// ServiceAccount reads one of a pod on this node.
func (c *Cache) ServiceAccount(ctx context.Context, namespace, name string) (account *corev1.ServiceAccount, err error) {
	err = authorized(ctx, func() (err error) {
		account, err = c.client.CoreV1().ServiceAccounts(namespace).Get(ctx, name, metav1.GetOptions{})
		return err
	})
	return account, err
}

// requestToken asks for a token that is worth nothing once the pod is gone.
func (c *Cache) requestToken(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (token, error) {
	req := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		BoundObjectRef: &authv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID},
	}}
	if audience != "" {
		req.Spec.Audiences = []string{audience}
	}
	if seconds > 0 {
		req.Spec.ExpirationSeconds = &seconds
	}
	asked := time.Now()
	var resp *authv1.TokenRequest
	err := authorized(ctx, func() (err error) {
		resp, err = c.client.CoreV1().ServiceAccounts(pod.Namespace).CreateToken(ctx, serviceAccount(pod), req, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return token{}, err
	}
	expires := resp.Status.ExpirationTimestamp.Time
	return token{value: resp.Status.Token, expires: expires, refresh: refreshAt(asked, expires, rand.N(tokenJitter))}, nil
}

// refreshAt is when a token is due: at 80 % of its life or after 24 h, minus a jitter.
func refreshAt(issued, expires time.Time, jitter time.Duration) time.Time {
	life := expires.Sub(issued)
	return issued.Add(min(life*8/10, maxTokenAge) - min(jitter, life/10))
}
