package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// StageError says that a volume failed before it was the pod's own affair.
type StageError struct{ Err error }

func (e *StageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *StageError) Unwrap() error { return e.Err }

// Publish makes the volume ready for the pod; idempotent. One that this boot has published is
// left as it is, also by an agent before this one. Errors are *NotAttachedError, *StageError or others.
func (m *Manager) Publish(ctx context.Context, v Volume) (Published, error) {
	s, err := v.source()
	if err != nil {
		return Published{}, err
	}
	p := place{string(v.Pod.UID), v.Name}
	defer m.handles.Lock(s.driver + "^" + s.handle)()
	if pub := m.publication(p); pub != nil && pub.Done {
		m.mu.Lock()
		pub.volume = &v
		m.mu.Unlock()
		return Published{Path: m.publishPath(p.uid, v.Name, s), Group: pub.Group, Labelled: pub.Labelled}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return m.publish(ctx, v, s, p)
}

// publishing is what one publication needs to know.
type publishing struct {
	m      *Manager
	v      Volume
	s      source
	driver *driver
	caps   capabilities
	spec   storagev1.CSIDriverSpec
	// context is what the attachment says to the driver.
	context map[string]string
}

func (m *Manager) publish(ctx context.Context, v Volume, s source, p place) (Published, error) {
	job, err := m.ask(ctx, v, s)
	if err != nil {
		return Published{}, &StageError{err}
	}
	labelled := job.label()
	pub := &publication{
		Driver: s.driver, Handle: s.handle, Attach: job.attaches(), volume: &v,
		Republish: job.spec.RequiresRepublish != nil && *job.spec.RequiresRepublish, Expand: job.caps[canExpand],
	}
	if err := m.keep(p, pub); err != nil {
		return Published{}, err
	}
	if pub.Attach {
		m.o.InUseChanged()
		if job.context, err = m.attached(ctx, s); err != nil {
			return Published{}, job.notAttached(ctx, err)
		}
	}
	if err := job.stage(ctx); err != nil {
		return Published{}, &StageError{err}
	}
	if err := job.publish(ctx); err != nil {
		return Published{}, err
	}
	if err := job.expand(ctx); err != nil {
		return Published{}, err
	}
	// Another value: readers may have the one before.
	done := *pub
	done.Done, done.Group, done.Labelled = true, job.givesGroup(), labelled
	return Published{Path: m.publishPath(p.uid, v.Name, s), Group: done.Group, Labelled: labelled}, m.keep(p, &done)
}

// label has the driver mount the volume with its SELinux label, if the driver can and nobody else may
// want another one (KEP-1710; SELinuxMount, which does so for other access modes, is off by default).
func (p *publishing) label() bool {
	var modes []corev1.PersistentVolumeAccessMode
	if p.v.PV != nil {
		modes = p.v.PV.Spec.AccessModes
	}
	able := p.spec.SELinuxMount != nil && *p.spec.SELinuxMount
	if !able || p.v.MountLabel == "" || p.s.block || len(modes) != 1 || modes[0] != corev1.ReadWriteOncePod {
		return false
	}
	p.s.mountOptions = append(slices.Clone(p.s.mountOptions), fmt.Sprintf("context=%q", p.v.MountLabel))
	return true
}

// ask collects what the driver and its object say.
func (m *Manager) ask(ctx context.Context, v Volume, s source) (*publishing, error) {
	d, err := m.driver(s.driver)
	if err != nil {
		return nil, err
	}
	spec, exists, err := m.object(ctx, s.driver)
	if err != nil {
		return nil, err
	}
	if err := supports(s.driver, spec, exists, s.mode); err != nil {
		return nil, err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return nil, err
	}
	return &publishing{m: m, v: v, s: s, driver: d, caps: caps, spec: spec}, nil
}

// attaches says whether the cluster attaches the volume to the node first.
func (p *publishing) attaches() bool {
	return p.s.mode == storagev1.VolumeLifecyclePersistent && (p.spec.AttachRequired == nil || *p.spec.AttachRequired)
}

// notAttached has the cluster learn how many volumes the node takes, if it has put too many here.
// Without a period in the driver's object a full node is an error like others, as with a kubelet.
func (p *publishing) notAttached(ctx context.Context, err error) error {
	var failed *NotAttachedError
	if !errors.As(err, &failed) || !failed.Exhausted {
		return err
	}
	if failed.Exhausted = refreshPeriod(p.spec) > 0; failed.Exhausted {
		if err := p.m.refresh(ctx, p.s.driver); err != nil {
			p.m.log.WarnContext(ctx, "How many volumes the node takes is not up to date", "driver", p.s.driver, "err", err)
		}
	}
	return err
}

// stage makes the volume ready on the node, once for all its pods. The spec lets it be repeated.
func (p *publishing) stage(ctx context.Context) error {
	if !p.caps[canStage] || p.s.mode == storagev1.VolumeLifecycleEphemeral || p.m.staged(p.s) {
		return nil
	}
	secrets, err := p.m.secret(ctx, "NodeStageSecretRef", p.s.stage)
	if err != nil {
		return err
	}
	path := p.m.stagingPath(p.v.Name, p.s)
	if err := os.MkdirAll(path, 0o750); err != nil {
		return err
	}
	if !p.s.block {
		if err := p.m.saveVolumeData(filepath.Dir(path), p.v.Name, p.s); err != nil {
			return err
		}
	}
	_, err = p.driver.client.NodeStageVolume(ctx, &csispec.NodeStageVolumeRequest{
		VolumeId: p.s.handle, PublishContext: p.context, StagingTargetPath: path,
		VolumeCapability: p.s.capability(p.caps, p.v.FSGroup), Secrets: secrets, VolumeContext: p.s.attributes,
	})
	return err
}

// publish makes the staged volume the pod's.
func (p *publishing) publish(ctx context.Context) error {
	secrets, err := p.m.secret(ctx, "NodePublishSecretRef", p.s.publish)
	if err != nil {
		return err
	}
	attributes := maps.Clone(p.s.attributes)
	if attributes == nil {
		attributes = map[string]string{}
	}
	p.addPodInfo(attributes)
	tokens, err := p.m.tokensFor(ctx, p.v.Pod, p.spec.TokenRequests)
	if err != nil {
		return err
	}
	if p.spec.ServiceAccountTokenInSecrets != nil && *p.spec.ServiceAccountTokenInSecrets {
		maps.Copy(secrets, tokens)
	} else {
		maps.Copy(attributes, tokens)
	}
	path := p.m.publishPath(string(p.v.Pod.UID), p.v.Name, p.s)
	if err := p.preparePath(path); err != nil {
		return err
	}
	request := &csispec.NodePublishVolumeRequest{
		VolumeId: p.s.handle, PublishContext: p.context, TargetPath: path, VolumeCapability: p.s.capability(p.caps, p.v.FSGroup),
		Readonly: p.s.readOnly, Secrets: secrets, VolumeContext: attributes,
	}
	if p.caps[canStage] && p.s.mode == storagev1.VolumeLifecyclePersistent {
		request.StagingTargetPath = p.m.stagingPath(p.v.Name, p.s)
	}
	_, err = p.driver.client.NodePublishVolume(ctx, request)
	return err
}

// preparePath makes what is above the target; the target itself is the driver's to make.
func (p *publishing) preparePath(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return err
	}
	data := filepath.Dir(path)
	if p.s.block {
		data = p.m.dir("volumeDevices", p.v.Name, "data")
	}
	return p.m.saveVolumeData(data, p.v.Name, p.s)
}

// addPodInfo tells the driver whose the volume is, where it asks for that.
func (p *publishing) addPodInfo(attributes map[string]string) {
	if p.spec.PodInfoOnMount == nil || !*p.spec.PodInfoOnMount {
		return
	}
	pod := p.v.Pod
	maps.Copy(attributes, map[string]string{
		"csi.storage.k8s.io/pod.name": pod.Name, "csi.storage.k8s.io/pod.namespace": pod.Namespace,
		"csi.storage.k8s.io/pod.uid": string(pod.UID), "csi.storage.k8s.io/serviceAccount.name": pod.Spec.ServiceAccountName,
		"csi.storage.k8s.io/ephemeral": strconv.FormatBool(p.s.mode == storagev1.VolumeLifecycleEphemeral),
	})
}

// givesGroup says whether fsGroup is for the node to apply: the driver cannot, and its policy
// asks for it (pkg/volume/csi, supportsFSGroup).
func (p *publishing) givesGroup() bool {
	policy := storagev1.ReadWriteOnceWithFSTypeFSGroupPolicy
	if p.spec.FSGroupPolicy != nil && *p.spec.FSGroupPolicy != "" {
		policy = *p.spec.FSGroupPolicy
	}
	switch {
	case p.v.FSGroup == nil, p.s.block, p.s.readOnly, p.caps[canMountGroup], policy == storagev1.NoneFSGroupPolicy:
		return false
	case policy == storagev1.FileFSGroupPolicy:
		return true
	case p.s.fsType == "":
		return false
	case p.v.PV == nil:
		return true
	}
	modes := p.v.PV.Spec.AccessModes
	return slices.Contains(modes, corev1.ReadWriteOnce) || slices.Contains(modes, corev1.ReadWriteOncePod)
}

// secret reads what a reference names; none is an empty one.
func (m *Manager) secret(ctx context.Context, field string, ref *corev1.SecretReference) (map[string]string, error) {
	values := map[string]string{}
	if ref == nil || ref.Name == "" {
		return values, nil
	}
	secret, err := m.o.Client.CoreV1().Secrets(ref.Namespace).Get(ctx, ref.Name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("fetching %s %s/%s failed: %w", field, ref.Namespace, ref.Name, err)
	}
	for key, value := range secret.Data {
		values[key] = string(value)
	}
	return values, nil
}
