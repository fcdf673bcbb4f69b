package objects

import (
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
)

const (
	// renewalJitter spreads renewals; a kubelet's.
	renewalJitter = 5 * time.Minute
	// renewalOverdue is how long after its time a renewal is late (a kubelet's refreshOverdueDuration).
	renewalOverdue = 10 * time.Minute
)

// certificateKey names a podCertificate source.
type certificateKey struct {
	podUID, volume string
	index          int
}

// certificate is one source on its way.
type certificate struct {
	mu     sync.Mutex // held while the API server is asked
	loaded bool
	state  certificateState
	key    *podKey // for the next request
	// refused is the signer's last word.
	refused error
	// lateTold and endTold say which events there were.
	lateTold, endTold bool
}

// certificateState outlives the agent.
type certificateState struct {
	Issued *issued `json:"issued,omitempty"`
	Asked  *asked  `json:"asked,omitempty"`
}

type issued struct {
	Key       []byte    `json:"key"`   // PEM
	Chain     []byte    `json:"chain"` // PEM
	RefreshAt time.Time `json:"refreshAt"`
	NotAfter  time.Time `json:"notAfter"`
}

// asked is a request whose end is not known.
type asked struct {
	Name string `json:"name"`
	Key  []byte `json:"key"` // PEM
}

// load takes up what an earlier agent left. What cannot be read is asked for anew.
func (c *certificate) load(kept Kept) error {
	if c.loaded {
		return nil
	}
	data, err := kept.Load()
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	if len(data) > 0 && json.Unmarshal(data, &c.state) != nil {
		c.state = certificateState{}
	}
	c.loaded = true
	return nil
}

func (c *certificate) save(kept Kept) error {
	data, err := json.Marshal(c.state)
	if err == nil {
		err = kept.Save(data)
	}
	if err != nil {
		return fmt.Errorf("keep certificate: %w", err)
	}
	return nil
}

// due says whether there is to be a new certificate.
func (c *certificate) due(now time.Time) bool {
	return c.state.Issued == nil || !now.Before(c.state.Issued.RefreshAt)
}

// accept takes what was issued. The signer's hint is kept, but for the jitter, within the life of
// the certificate.
func (c *certificate) accept(kept Kept, request *certificatesv1beta1.PodCertificateRequest) error {
	status := request.Status
	chain := cleanChain([]byte(status.CertificateChain))
	if len(chain) == 0 || status.BeginRefreshAt == nil || status.NotAfter == nil {
		c.state.Asked = nil
		c.refused = fmt.Errorf("PodCertificateRequest %s/%s was issued without certificateChain, beginRefreshAt or notAfter: its signer has to set them",
			request.Namespace, request.Name)
		return errors.Join(c.refused, c.save(kept))
	}
	refresh := status.BeginRefreshAt.Time
	if room := min(renewalJitter, status.NotAfter.Sub(refresh)/2); room > 0 {
		refresh = refresh.Add(rand.N(room))
	}
	c.state = certificateState{Issued: &issued{Key: c.state.Asked.Key, Chain: chain, RefreshAt: refresh, NotAfter: status.NotAfter.Time}}
	c.lateTold, c.endTold = false, false
	return c.save(kept)
}

// next is when the source is to be looked at again; err is what became of the last look.
func (c *certificate) next(now time.Time, err error) time.Time {
	i := c.state.Issued
	var at time.Time
	for _, t := range []time.Time{i.RefreshAt, i.RefreshAt.Add(renewalOverdue), i.NotAfter} {
		if t.After(now) && (at.IsZero() || t.Before(at)) {
			at = t
		}
	}
	if retry := now.Add(tokenRetry); err != nil && c.refused == nil && (at.IsZero() || retry.Before(at)) {
		return retry
	}
	return at
}

// warnLate tells a kubelet's events of a renewal that is late.
func (c *Cache) warnLate(cert *certificate, pod *corev1.Pod, now time.Time) {
	if i := cert.state.Issued; !now.Before(i.RefreshAt.Add(renewalOverdue)) && !cert.lateTold {
		cert.lateTold = true
		c.opts.Warn(pod, "CertificateOverdueForRefresh", "PodCertificate refresh overdue")
	}
	if i := cert.state.Issued; !now.Before(i.NotAfter) && !cert.endTold {
		cert.endTold = true
		c.opts.Warn(pod, "CertificateExpired", "PodCertificate expired")
	}
}

// cleanChain is the PEM blocks without what is between them and without their headers.
func cleanChain(chain []byte) []byte {
	var out []byte
	for {
		var block *pem.Block
		if block, chain = pem.Decode(chain); block == nil {
			return out
		}
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
	}
}

// certificateCache holds the sources of registered pods, and tells a pod when one is due.
type certificateCache struct {
	tell func(podUID string)
	// making is held by who makes a key: those of RSA take seconds of a CPU, and a pod can ask for many.
	making chan struct{}

	mu      sync.Mutex
	closed  bool
	sources map[certificateKey]*certificate
	timers  map[certificateKey]*time.Timer
}

func (c *certificateCache) init(tell func(string)) {
	c.tell, c.making = tell, make(chan struct{}, 1)
	c.sources, c.timers = map[certificateKey]*certificate{}, map[certificateKey]*time.Timer{}
}

func (c *certificateCache) of(k certificateKey) *certificate {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sources[k] == nil {
		c.sources[k] = &certificate{}
	}
	return c.sources[k]
}

// wake has the pod told at a time, unless the source is forgotten; zero is never.
func (c *certificateCache) wake(k certificateKey, cert *certificate, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if timer := c.timers[k]; timer != nil {
		timer.Stop()
		delete(c.timers, k)
	}
	if c.closed || c.sources[k] != cert || at.IsZero() {
		return
	}
	c.timers[k] = time.AfterFunc(time.Until(at), func() { c.tell(k.podUID) })
}

// forget drops what is known of a pod.
func (c *certificateCache) forget(podUID string) {
	c.drop(func(k certificateKey) bool { return k.podUID == podUID })
}

// clear drops everything, for good.
func (c *certificateCache) clear() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.drop(func(certificateKey) bool { return true })
}

func (c *certificateCache) drop(which func(certificateKey) bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.sources {
		if !which(k) {
			continue
		}
		if timer := c.timers[k]; timer != nil {
			timer.Stop()
		}
		delete(c.timers, k)
		delete(c.sources, k)
	}
}
