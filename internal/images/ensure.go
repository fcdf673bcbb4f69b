package images

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// The waiting reasons and event reasons are the kubelet's (pkg/kubelet/images, events).
const (
	reasonPullFailed   = "ErrImagePull"
	reasonBackOff      = "ImagePullBackOff"
	reasonNeverPull    = "ErrImageNeverPull"
	reasonInvalidName  = "InvalidImageName"
	reasonInspectError = "ImageInspectError"

	eventPulling   = "Pulling"
	eventPulled    = "Pulled"
	eventFailed    = "Failed"
	eventBackOff   = "BackOff"
	eventInspect   = "InspectFailed"
	eventNeverPull = "ErrImageNeverPull"
)

// ensuring is one call of Ensure.
type ensuring struct {
	m     *Manager
	req   PullRequest
	ref   imageRef
	creds []credential
	asked bool // providers have been
}

// Ensure implements Store.
func (m *Manager) Ensure(ctx context.Context, req PullRequest) (Image, error) {
	e := &ensuring{m: m, req: req}
	ref, err := parseRef(req.Ref)
	if err != nil {
		err = fmt.Errorf("Failed to apply default image tag %q: %w", req.Ref, err) //nolint:staticcheck // the kubelet's text
		return e.fail(eventInspect, reasonInvalidName, err)
	}
	e.ref = ref
	var errs []error
	e.creds, errs = credentials(req.Secrets, ref.repo())
	for _, err := range errs {
		m.log.WarnContext(ctx, "Image pull secret left out", "error", err)
	}
	if isHostImage(ref) {
		return e.hostImage(ctx)
	}
	if e.policy() != corev1.PullAlways {
		img, done, err := e.fromStore(ctx)
		if done || err != nil {
			return img, err
		}
	}
	return e.fromRegistry(ctx)
}

// policy applies the API server's default, for pods that did not come through it.
func (e *ensuring) policy() corev1.PullPolicy {
	switch {
	case e.req.Policy != "":
		return e.req.Policy
	case e.ref.tag == "latest":
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

// fromStore answers without a registry where the policy and the pod's credentials allow it.
func (e *ensuring) fromStore(ctx context.Context) (img Image, done bool, err error) {
	r, ok, err := e.m.present(e.ref.canonical())
	if err != nil {
		img, err = e.fail(eventInspect, reasonInspectError, fmt.Errorf("Failed to inspect image %q: %w", e.req.Ref, err)) //nolint:staticcheck // the kubelet's text
		return img, false, err
	}
	if ok && e.mayUse(ctx, r.Access[e.ref.repo()]) {
		e.event(corev1.EventTypeNormal, eventPulled,
			fmt.Sprintf("Container image %q already present on machine and can be accessed by the pod", e.req.Ref))
		return e.use(r), true, nil
	}
	if e.policy() == corev1.PullNever {
		err := fmt.Errorf("Container image %q is not present with pull policy of Never", e.req.Ref) //nolint:staticcheck // the kubelet's text
		img, err := e.fail(eventNeverPull, reasonNeverPull, err)
		return img, false, err
	}
	return Image{}, false, nil
}

// mayUse says whether the pod may have an image that is present: the node's policy asks for no
// proof, or it was pulled under this name without credentials, with credentials of the node, or
// with some that this pod has too.
func (e *ensuring) mayUse(ctx context.Context, access Access) bool {
	if e.m.opts.Verify.exempts(e.ref.repo(), access) || access.Anyone {
		return true
	}
	known := func(prefix string) bool {
		return slices.ContainsFunc(access.Credentials, func(name string) bool { return strings.HasPrefix(name, prefix) })
	}
	if known(nodeCredentialPrefix) || e.proves(access) {
		return true
	}
	if known(accountPrefix) {
		e.askProviders(ctx)
	}
	return e.proves(access)
}

// proves says whether one of the pod's logins is among those that worked.
func (e *ensuring) proves(access Access) bool {
	return slices.ContainsFunc(e.creds, func(c credential) bool {
		return slices.ContainsFunc(c.names(), func(name string) bool { return slices.Contains(access.Credentials, name) })
	})
}

func (e *ensuring) fromRegistry(ctx context.Context) (Image, error) {
	key := e.backOffKey()
	if e.m.backoff.IsInBackOffSinceUpdate(key, time.Now()) {
		return e.backOff(key)
	}
	e.m.lastErr.clear(key)
	e.askProviders(ctx)
	e.event(corev1.EventTypeNormal, eventPulling, fmt.Sprintf("Pulling image %q", e.req.Ref))
	start := time.Now()
	var began time.Time
	r, err := e.m.pulls.do(ctx, e.flightKey(), func(ctx context.Context) (Record, error) {
		if err := e.m.slots.Acquire(ctx, 1); err != nil {
			return Record{}, err
		}
		defer e.m.slots.Release(1)
		began = time.Now()
		return e.m.pull(ctx, e.ref, e.creds)
	})
	if err != nil {
		return e.pullFailed(ctx, key, err)
	}
	if began.IsZero() {
		began = start // joined another caller's pull
	} else if e.m.opts.Pulled != nil {
		e.m.opts.Pulled(r.Size, time.Since(began))
	}
	e.event(corev1.EventTypeNormal, eventPulled, fmt.Sprintf(
		"Successfully pulled image %q in %v (%v including waiting). Image size: %v bytes.", e.req.Ref,
		time.Since(began).Truncate(time.Millisecond), time.Since(start).Truncate(time.Millisecond), r.Size))
	return e.use(r), nil
}

// backOffKey is the pod and the image, as with a kubelet: a pod whose credentials do not work is
// not to hold up those whose do.
func (e *ensuring) backOffKey() string {
	if e.req.Pod == nil {
		return e.ref.canonical()
	}
	return string(e.req.Pod.UID) + " " + e.ref.canonical()
}

// forgetFailures drops those that are long over, of pods that may have gone.
func (m *Manager) forgetFailures() {
	m.backoff.GC()
	m.lastErr.keep(func(key string) bool { return m.backoff.Get(key) > 0 })
}

// askProviders adds the logins that plugins give, once, after the pod's own.
func (e *ensuring) askProviders(ctx context.Context) {
	if e.asked {
		return
	}
	e.asked = true
	list, errs := e.m.opts.Providers.logins(ctx, e.ref.repo(), e.req.Pod)
	for _, err := range errs {
		e.m.log.WarnContext(ctx, "Credential provider left out", "image", e.req.Ref, "error", err)
	}
	e.creds = append(e.creds, list...)
}

// flightKey keeps pulls with different credentials apart: one must not prove the other's access.
func (e *ensuring) flightKey() string {
	key := e.ref.canonical()
	for _, c := range e.creds {
		key += " " + c.hash
	}
	return key
}

func (e *ensuring) pullFailed(ctx context.Context, key string, err error) (Image, error) {
	if ctx.Err() != nil {
		return Image{}, &Error{Reason: reasonPullFailed, Image: e.req.Ref, Err: err}
	}
	e.m.forgetFailures()
	e.m.backoff.Next(key, time.Now())
	e.m.lastErr.set(key, fmt.Sprintf("%s: %v", reasonPullFailed, err))
	e.event(corev1.EventTypeWarning, eventFailed, fmt.Sprintf("Failed to pull image %q: %v", e.req.Ref, err))
	e.event(corev1.EventTypeWarning, eventFailed, "Error: "+reasonPullFailed)
	return Image{}, &Error{Reason: reasonPullFailed, Image: e.req.Ref, Err: err, RetryAt: time.Now().Add(e.m.backoff.Get(key))}
}

func (e *ensuring) backOff(key string) (Image, error) {
	msg := fmt.Sprintf("Back-off pulling image %q", e.req.Ref)
	e.event(corev1.EventTypeNormal, eventBackOff, msg)
	e.event(corev1.EventTypeWarning, eventFailed, "Error: "+reasonBackOff)
	if last := e.m.lastErr.get(key); last != "" {
		msg += ": " + last
	}
	return Image{}, &Error{Reason: reasonBackOff, Image: e.req.Ref, Err: errors.New(msg), RetryAt: time.Now().Add(e.m.backoff.Get(key))}
}

// fail reports a failure that a back-off does not help.
func (e *ensuring) fail(event, reason string, err error) (Image, error) {
	e.event(corev1.EventTypeWarning, event, err.Error())
	e.event(corev1.EventTypeWarning, eventFailed, "Error: "+reason)
	return Image{}, &Error{Reason: reason, Image: e.req.Ref, Err: err}
}

func (e *ensuring) event(kind, reason, message string) {
	if e.req.Event != nil {
		e.req.Event(PullEvent{Type: kind, Reason: reason, Message: message})
	}
}

// use notes the use and makes the answer.
func (e *ensuring) use(r Record) Image {
	if err := e.m.index.touch(r.ID); err != nil {
		e.m.log.Warn("Image use not noted", "image", e.req.Ref, "error", err)
	}
	img := e.m.image(r)
	img.Ref = e.req.Ref
	if d := r.digestIn(e.ref.repo()); d != "" {
		img.Digest = d
	}
	if e.ref.digest != "" {
		img.Digest = e.ref.canonical()
	}
	return img
}

// digestIn is the record's repository@digest within a repository.
func (r Record) digestIn(repo string) string {
	for _, d := range r.Digests {
		if len(d) > len(repo) && d[:len(repo)] == repo && d[len(repo)] == '@' {
			return d
		}
	}
	return ""
}

// image turns a record into what runs.
func (m *Manager) image(r Record) Image {
	img := Image{ID: r.ID.String(), Digest: r.ID.String(), Config: r.Config, Size: r.Size}
	if len(r.Digests) > 0 {
		img.Digest = r.Digests[0]
	}
	if len(r.Tags) > 0 {
		img.Ref = r.Tags[0]
	}
	for _, key := range slices.Backward(r.Layers) {
		img.Layers = append(img.Layers, m.path("layers", key))
	}
	return img
}

// present finds an image whose layers are all there; a record without them counts as absent.
func (m *Manager) present(ref string) (Record, bool, error) {
	r, ok, err := m.index.find(ref)
	if err != nil || !ok {
		return r, false, err
	}
	for _, key := range r.Layers {
		if !m.hasLayer(key) {
			return r, false, nil
		}
	}
	return r, true, nil
}

// Get implements Store.
func (m *Manager) Get(ctx context.Context, digest string) (Image, bool, error) {
	if strings.HasPrefix(digest, hostImageRegistry+"/") {
		img, err := m.hostImage(ctx, digest)
		return img, err == nil, nil //nolint:nilerr // Ensure says why
	}
	r, ok, err := m.present(digest)
	if err != nil || !ok {
		return Image{}, false, err
	}
	img := m.image(r)
	img.Digest = digest
	return img, true, nil
}

// maxNames is how many names of one image a kubelet reports.
const maxNames = 5

// List implements Store: largest first, digests before tags, as a kubelet reports them.
func (m *Manager) List(context.Context) ([]corev1.ContainerImage, error) {
	records, err := m.index.all()
	if err != nil {
		return nil, err
	}
	out := make([]corev1.ContainerImage, 0, len(records))
	for _, r := range records {
		names := append(slices.Clone(r.Digests), r.Tags...)
		out = append(out, corev1.ContainerImage{Names: names[:min(len(names), maxNames)], SizeBytes: r.Size})
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].SizeBytes != out[j].SizeBytes {
			return out[i].SizeBytes > out[j].SizeBytes
		}
		return slices.Compare(out[i].Names, out[j].Names) < 0
	})
	return out, nil
}
