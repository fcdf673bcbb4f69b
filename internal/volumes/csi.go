package volumes

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/csi"
)

// CSI has the volumes of drivers. *csi.Manager implements it.
type CSI interface {
	Publish(ctx context.Context, v csi.Volume) (csi.Published, error)
	Unpublish(ctx context.Context, v csi.Volume) error
	Stats(ctx context.Context, v csi.Volume) (*csi.Stats, error)
}

var _ CSI = (*csi.Manager)(nil)

// inlineCSI has a driver make a volume that lives as long as the pod.
func (v volume) inlineCSI(ctx context.Context, src *corev1.CSIVolumeSource) (Mounted, error) {
	rec := &record{Volume: v.spec.Name, Source: &corev1.VolumeSource{CSI: src}}
	mounted, err := v.csi(ctx, rec)
	if err != nil {
		failure := v.fail("csi", err)
		failure.locate(err)
		return Mounted{}, failure
	}
	return mounted, nil
}

// csi publishes a driver's volume and gives it to the pod's group where that is for the node
// to do.
func (v volume) csi(ctx context.Context, rec *record) (Mounted, error) {
	if v.m.opts.CSI == nil {
		return Mounted{}, errors.New("this node has no CSI drivers")
	}
	if err := v.keep(rec); err != nil {
		return Mounted{}, err
	}
	wanted := rec.csi(v.pod)
	wanted.FSGroup, wanted.MountLabel = v.info.FSGroup, v.info.MountLabels[v.spec.Name]
	published, err := v.m.opts.CSI.Publish(ctx, wanted)
	block := rec.PV != nil && isBlock(rec.PV)
	if err != nil {
		return Mounted{}, csiStep(err, block)
	}
	if block {
		mounted, err := deviceAt(published.Path)
		return mounted, at(opMap, err)
	}
	if published.Group {
		if err := v.giveToGroup(published.Path); err != nil {
			return Mounted{}, err
		}
	}
	return Mounted{Path: published.Path, Readonly: rec.ReadOnly, Relabel: !rec.ReadOnly && !published.Labelled}, nil
}

// csiStep names the kubelet's step that failed.
func csiStep(err error, block bool) error {
	var waiting *csi.NotAttachedError
	var staging *csi.StageError
	switch {
	case errors.As(err, &waiting):
		return &opError{op: opAttach, err: err, quiet: waiting.Waiting, full: waiting.Exhausted}
	case block:
		return at(opMap, err)
	case errors.As(err, &staging):
		return at(opDevice, err)
	}
	return err
}

// csi is the record's volume as CSI sees it.
func (r *record) csi(pod *corev1.Pod) csi.Volume {
	if r.Source != nil {
		return csi.Volume{Pod: pod, Name: r.Volume, Inline: r.Source.CSI}
	}
	return csi.Volume{Pod: pod, Name: r.PV.Name, PV: r.PV, Claim: r.Claim, ReadOnly: r.ReadOnly}
}

// isCSI says whether a driver has the record's volume.
func (r *record) isCSI() bool {
	return r.Source != nil && r.Source.CSI != nil || r.PV != nil && r.PV.Spec.CSI != nil
}

// unpublish gives a volume back to its driver; of the pod only the UID is known by now.
func (m *Manager) unpublish(ctx context.Context, uid string, rec *record) error {
	if m.opts.CSI == nil {
		return errors.New("this node has no CSI drivers")
	}
	return m.opts.CSI.Unpublish(ctx, rec.csi(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}}))
}
