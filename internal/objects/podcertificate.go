package objects

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
)

// CertificateSource is one podCertificate source of a pod's volume.
type CertificateSource struct {
	Pod    *corev1.Pod
	Volume string
	// Index of the source in the volume.
	Index int
	Spec  *corev1.PodCertificateProjection
	Kept  Kept
}

// Kept keeps a source's state for an agent that comes after this one, private keys among it: it has
// to be where the pod's secrets are, and to go with them.
type Kept interface {
	// Load returns what was saved last, nil if there is nothing.
	Load() ([]byte, error)
	// Save replaces it at once.
	Save(state []byte) error
}

// Credential is a private key (PKCS#8) and the certificates of it, the leaf first; both are PEM.
type Credential struct{ Key, Chain []byte }

// PodCertificates asks for certificates of pods (KEP-4317, certificates.k8s.io/v1beta1).
type PodCertificates interface {
	// PodCertificate returns the source's credential, and has it renewed, with a new key, from the time
	// that its signer named: the pod is told when it is due and when there is a new one. The first one
	// is waited for as long as for a watch's first answer. In a cluster that has not the API it is a
	// *NotServedError.
	PodCertificate(ctx context.Context, s CertificateSource) (Credential, error)
}

var _ PodCertificates = (*Cache)(nil)

var errNotIssued = errors.New("credential bundle is not issued yet")

// PodCertificate implements PodCertificates. A signer's refusal is final while the agent runs, as
// with a kubelet; what was issued before stays.
func (c *Cache) PodCertificate(ctx context.Context, s CertificateSource) (Credential, error) {
	uid := string(s.Pod.UID)
	if !c.registered(uid) {
		return Credential{}, fmt.Errorf("request certificate: pod %s is not registered", uid)
	}
	k := certificateKey{uid, s.Volume, s.Index}
	cert := c.certificates.of(k)
	cert.mu.Lock()
	defer cert.mu.Unlock()
	if err := cert.load(s.Kept); err != nil {
		return Credential{}, err
	}
	err := c.advance(ctx, cert, s)
	now, issued := time.Now(), cert.state.Issued
	if issued == nil {
		if cert.refused == nil { // the volume may have been written before, and is then not tried again
			c.certificates.wake(k, cert, now.Add(tokenRetry))
		}
		return Credential{}, err
	}
	if err != nil && cert.refused == nil {
		c.log.WarnContext(ctx, "Certificate not renewed", "pod", s.Pod.Namespace+"/"+s.Pod.Name, "uid", uid,
			"volume", s.Volume, "error", err)
	}
	c.warnLate(cert, s.Pod, now)
	c.certificates.wake(k, cert, cert.next(now, err))
	return Credential{Key: issued.Key, Chain: issued.Chain}, nil
}

func (c *Cache) registered(podUID string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pods[podUID] != nil
}

// advance takes the source a step on: it asks for a certificate where there is none or it is due,
// and looks what became of the request.
func (c *Cache) advance(ctx context.Context, cert *certificate, s CertificateSource) error {
	if cert.state.Asked == nil && !cert.due(time.Now()) {
		return nil
	}
	if cert.refused != nil {
		return cert.refused
	}
	if cert.state.Asked == nil {
		if err := c.ask(ctx, cert, s); err != nil {
			return err
		}
	}
	request, err := c.outcome(ctx, s.Pod.Namespace, cert.state.Asked.Name, cert.state.Issued == nil)
	if apierrors.IsNotFound(err) {
		gone := fmt.Errorf("PodCertificateRequest %s/%s is gone", s.Pod.Namespace, cert.state.Asked.Name)
		cert.state.Asked = nil
		return errors.Join(gone, cert.save(s.Kept))
	}
	if err != nil {
		return err
	}
	return c.take(cert, s, request)
}

// take draws the consequences of a request's conditions.
func (c *Cache) take(cert *certificate, s CertificateSource, request *certificatesv1beta1.PodCertificateRequest) error {
	verdict := verdictOf(request)
	if verdict == nil {
		if cert.state.Issued == nil {
			return errNotIssued
		}
		return nil
	}
	if verdict.Type == certificatesv1beta1.PodCertificateRequestConditionTypeIssued {
		return cert.accept(s.Kept, request)
	}
	how := strings.ToLower(verdict.Type) // denied or failed
	cert.refused = fmt.Errorf("PodCertificateRequest was permanently %s: reason=%q message=%q", how, verdict.Reason, verdict.Message)
	cert.state.Asked = nil
	if cert.state.Issued != nil { // else it is said why the volume is not there
		c.opts.Warn(s.Pod, verdict.Type, fmt.Sprintf("PodCertificateRequest %s/%s was %s, reason=%q, message=%q",
			request.Namespace, request.Name, how, verdict.Reason, verdict.Message))
	}
	return errors.Join(cert.refused, cert.save(s.Kept))
}

// verdictOf is the condition that ends a request, nil if there is none yet.
func verdictOf(request *certificatesv1beta1.PodCertificateRequest) *metav1.Condition {
	for i := range request.Status.Conditions {
		switch condition := &request.Status.Conditions[i]; condition.Type {
		case certificatesv1beta1.PodCertificateRequestConditionTypeIssued, certificatesv1beta1.PodCertificateRequestConditionTypeDenied,
			certificatesv1beta1.PodCertificateRequestConditionTypeFailed:
			return condition
		}
	}
	return nil
}

// ask makes a request. A key whose request was not taken is used for the next one: keys are dear.
func (c *Cache) ask(ctx context.Context, cert *certificate, s CertificateSource) error {
	requests := c.collected(kindRequest)
	if requests == nil {
		return errors.New("request certificate: the pod has no such source")
	}
	if err := requests.answered(ctx, c.opts.FirstAnswer); err != nil {
		return err
	}
	node := c.opts.Node()
	if node == nil {
		return errors.New("request certificate: the node is not known yet")
	}
	account, err := c.ServiceAccount(ctx, s.Pod.Namespace, serviceAccount(s.Pod))
	if err != nil {
		return fmt.Errorf("read service account %s/%s: %w", s.Pod.Namespace, serviceAccount(s.Pod), err)
	}
	if cert.key == nil {
		if cert.key, err = c.certificates.newKey(ctx, s.Spec.KeyType); err != nil {
			return err
		}
	}
	request, err := cert.key.request(s, node, account.UID)
	if err != nil {
		return err
	}
	err = authorized(ctx, func() (err error) {
		request, err = c.client.CertificatesV1beta1().PodCertificateRequests(s.Pod.Namespace).Create(ctx, request, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return fmt.Errorf("create PodCertificateRequest of signer %s: %w", s.Spec.SignerName, err)
	}
	cert.state.Asked = &asked{Name: request.Name, Key: cert.key.pem}
	cert.key = nil
	return cert.save(s.Kept)
}

// request is what is asked for with a key.
func (k *podKey) request(s CertificateSource, node *corev1.Node, account types.UID) (*certificatesv1beta1.PodCertificateRequest, error) {
	proof, err := k.prove(string(s.Pod.UID))
	if err != nil {
		return nil, err
	}
	return &certificatesv1beta1.PodCertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: s.Pod.Namespace, GenerateName: "req-",
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: s.Pod.Name, UID: s.Pod.UID}},
		},
		Spec: certificatesv1beta1.PodCertificateRequestSpec{
			SignerName: s.Spec.SignerName, PodName: s.Pod.Name, PodUID: s.Pod.UID,
			ServiceAccountName: serviceAccount(s.Pod), ServiceAccountUID: account,
			NodeName: types.NodeName(node.Name), NodeUID: node.UID,
			MaxExpirationSeconds: s.Spec.MaxExpirationSeconds, PKIXPublicKey: k.public, ProofOfPossession: proof,
			UnverifiedUserAnnotations: s.Spec.UserAnnotations,
		},
	}, nil
}

// outcome reads a request; with wait it is waited for its end, as long as for a first answer.
func (c *Cache) outcome(ctx context.Context, namespace, name string, wait bool) (*certificatesv1beta1.PodCertificateRequest, error) {
	requests := c.collected(kindRequest)
	if requests == nil {
		return nil, errors.New("read PodCertificateRequest: the pod has no such source")
	}
	if err := requests.answered(ctx, c.opts.FirstAnswer); err != nil {
		return nil, err
	}
	timer := time.NewTimer(c.opts.FirstAnswer)
	defer timer.Stop()
	for {
		object, news := requests.get(namespace, name)
		request, _ := object.(*certificatesv1beta1.PodCertificateRequest)
		if request == nil { // the watch may be late
			err := authorized(ctx, func() (err error) {
				request, err = c.client.CertificatesV1beta1().PodCertificateRequests(namespace).Get(ctx, name, metav1.GetOptions{})
				return err
			})
			if err != nil {
				return nil, err
			}
		}
		if !wait || verdictOf(request) != nil {
			return request, nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return request, nil
		case <-timer.C:
			return request, nil
		}
	}
}

// requestAPI lists what a node may: the requests for its own pods.
func (c *Cache) requestAPI() (api, error) {
	if _, err := servedVersion(c.client.Discovery(), "podcertificaterequests", "v1beta1"); err != nil {
		return api{}, err
	}
	node := c.opts.Node()
	if node == nil {
		return api{}, errors.New("list PodCertificateRequests: the node is not known yet")
	}
	selector := fields.OneTermEqualSelector("spec.nodeName", node.Name).String()
	requests := c.client.CertificatesV1beta1().PodCertificateRequests(metav1.NamespaceAll)
	return api{
		list: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = selector
			return requests.List(ctx, opts)
		},
		watch: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = selector
			return requests.Watch(ctx, opts)
		},
	}, nil
}

// requestChanged tells the pod whose request has come to its end.
func (c *Cache) requestChanged(before, now metav1.Object) {
	if before == nil && now == nil {
		c.tellUsersOf(func(k key) bool { return k.kind == kindRequest })
		return
	}
	old, _ := before.(*certificatesv1beta1.PodCertificateRequest)
	request, _ := now.(*certificatesv1beta1.PodCertificateRequest)
	switch {
	case old != nil && verdictOf(old) != nil: // it was told
	case request == nil && old != nil && c.registered(string(old.Spec.PodUID)):
		c.tellPod(string(old.Spec.PodUID))
	case request != nil && verdictOf(request) != nil && c.registered(string(request.Spec.PodUID)):
		c.tellPod(string(request.Spec.PodUID))
	}
}
