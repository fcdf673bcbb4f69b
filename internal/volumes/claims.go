package volumes

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/component-helpers/storage/ephemeral"
	volumehelper "k8s.io/component-helpers/storage/volume"
)

// Claims reads claims and the volumes that they are bound to. A node may get those that its
// pods refer to, and may neither list nor watch them.
type Claims interface {
	Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error)
	PersistentVolume(ctx context.Context, name string) (*corev1.PersistentVolume, error)
	// Grown says in the claim that its volume has the size.
	Grown(ctx context.Context, claim *corev1.PersistentVolumeClaim, size resource.Quantity) error
}

// APIClaims are those of the cluster.
type APIClaims struct{ Client kubernetes.Interface }

var _ Claims = APIClaims{}

// Claim implements Claims.
func (a APIClaims) Claim(ctx context.Context, namespace, name string) (*corev1.PersistentVolumeClaim, error) {
	return a.Client.CoreV1().PersistentVolumeClaims(namespace).Get(ctx, name, metav1.GetOptions{})
}

// PersistentVolume implements Claims.
func (a APIClaims) PersistentVolume(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	return a.Client.CoreV1().PersistentVolumes().Get(ctx, name, metav1.GetOptions{})
}

// What a kubelet says that it was doing when a volume failed.
const (
	opProcess  = "process"
	opSetUp    = "MountVolume.SetUp"
	opNew      = "MountVolume.NewMounter initialization"
	opAffinity = "MountVolume.NodeAffinity check"
	opDevice   = "MountVolume.MountDevice"
	opAttach   = "AttachVolume.Attach"
	opMap      = "MapVolume.SetUpDevice"
	opTearDown = "UnmountVolume.TearDown"
	opUnmap    = "UnmapVolume.UnmapBlockVolume"
)

// claim makes what the volume's claim is bound to ready. What was found is kept beside the
// pod's volumes: a container starts again, and the volume is taken down, without the API.
func (v volume) claim(ctx context.Context) (Mounted, error) {
	field := v.kind()
	rec, err := v.record()
	if err == nil && rec == nil {
		rec, err = v.resolve(ctx)
	}
	if err != nil {
		failure := v.fail(field, err)
		failure.Op = opProcess
		return Mounted{}, failure
	}
	mounted, err := v.persistent(ctx, rec)
	if err != nil {
		failure := v.fail(field, err)
		failure.locate(err)
		failure.Named = rec.PV.Name
		return Mounted{}, failure
	}
	mounted.Readonly = mounted.Readonly || rec.ReadOnly
	return mounted, nil
}

// opError says at which of the kubelet's steps err happened.
type opError struct {
	op    string
	err   error
	quiet bool
	full  bool
}

// locate takes over at which step err happened.
func (e *Error) locate(err error) {
	var at *opError
	if errors.As(err, &at) {
		e.Op, e.Err, e.Quiet, e.Full = at.op, at.err, at.quiet, at.full
	}
}

func (e *opError) Error() string { return e.op + ": " + e.err.Error() }
func (e *opError) Unwrap() error { return e.err }

func at(op string, err error) error {
	if err == nil {
		return nil
	}
	return &opError{op: op, err: err}
}

// resolve follows the claim to its volume, in a kubelet's words where that fails.
func (v volume) resolve(ctx context.Context) (*record, error) {
	if v.m.opts.Claims == nil {
		return nil, errors.New("this node has no access to claims")
	}
	rec := &record{Volume: v.spec.Name, Claim: v.claimName()}
	if src := v.spec.PersistentVolumeClaim; src != nil {
		rec.ReadOnly = src.ReadOnly
	}
	pv, err := v.boundTo(ctx, rec.Claim)
	if err != nil {
		return nil, fmt.Errorf("error processing PVC %s/%s: %w", v.pod.Namespace, rec.Claim, err)
	}
	if pv, err = migrated(ctx, pv); err != nil {
		return nil, err
	}
	rec.PV = &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: pv.Name, UID: pv.UID}, Spec: pv.Spec}
	if err := v.checkMode(rec.PV); err != nil {
		return nil, err
	}
	return rec, nil
}

func (v volume) claimName() string {
	if v.spec.Ephemeral != nil {
		return ephemeral.VolumeClaimName(v.pod, v.spec)
	}
	return v.spec.PersistentVolumeClaim.ClaimName
}

func (v volume) boundTo(ctx context.Context, name string) (*corev1.PersistentVolume, error) {
	claim, err := v.m.opts.Claims.Claim(ctx, v.pod.Namespace, name)
	if err != nil {
		return nil, fmt.Errorf("failed to fetch PVC from API server: %w", err)
	}
	if v.spec.Ephemeral != nil {
		if err := ephemeral.VolumeIsForPod(v.pod, claim); err != nil {
			return nil, err
		}
	}
	switch {
	case claim.DeletionTimestamp != nil:
		return nil, errors.New("PVC is being deleted")
	case claim.Status.Phase != corev1.ClaimBound:
		return nil, errors.New("PVC is not bound")
	case claim.Spec.VolumeName == "":
		return nil, errors.New("PVC has empty pvc.Spec.VolumeName")
	}
	pv, err := v.m.opts.Claims.PersistentVolume(ctx, claim.Spec.VolumeName)
	if err != nil {
		return nil, fmt.Errorf("failed to fetch PV %s from API server: %w", claim.Spec.VolumeName, err)
	}
	if ref := pv.Spec.ClaimRef; ref == nil {
		return nil, fmt.Errorf("found PV object %s but it has a nil pv.Spec.ClaimRef indicating it is not yet bound to the claim", pv.Name)
	} else if ref.UID != claim.UID {
		return nil, fmt.Errorf("found PV object %s but its pv.Spec.ClaimRef.UID %s does not point to claim.UID %s", pv.Name, ref.UID, claim.UID)
	}
	return pv, nil
}

// checkMode compares the volume's mode with how containers use it.
func (v volume) checkMode(pv *corev1.PersistentVolume) error {
	mounts, devices := uses(v.pod, v.spec.Name)
	switch {
	case mounts && isBlock(pv):
		return fmt.Errorf("volume %s has volumeMode Block, but is specified in volumeMounts", v.spec.Name)
	case devices && !isBlock(pv):
		return fmt.Errorf("volume %s has volumeMode Filesystem, but is specified in volumeDevices", v.spec.Name)
	}
	return nil
}

func isBlock(pv *corev1.PersistentVolume) bool {
	return pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock
}

// checkNode refuses a volume that is tied to another node: the scheduler may not have been asked.
func (v volume) checkNode(pv *corev1.PersistentVolume) error {
	node := v.m.opts.Node()
	if node == nil {
		return nil
	}
	return at(opAffinity, volumehelper.CheckNodeAffinity(pv, node.Labels))
}
