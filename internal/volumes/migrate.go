package volumes

import (
	"context"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	csitranslation "k8s.io/csi-translation-lib"
	"k8s.io/klog/v2"
)

// translator knows which CSI drivers have taken over volume types that were built into Kubernetes.
var translator = csitranslation.New()

// migrated is the volume as its driver knows it, pv itself if its type has none.
func migrated(ctx context.Context, pv *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if !translator.IsPVMigratable(pv) {
		return pv, nil
	}
	translated, err := translator.TranslateInTreePVToCSI(klog.FromContext(ctx), pv)
	if err != nil {
		return nil, fmt.Errorf("failed to translate in-tree pv to CSI: %w", err)
	}
	return translated, nil
}

// inlineMigrated has a driver publish a volume that the pod names by its former type. It is not
// the pod's own, as an inline volume of CSI is: the cluster attaches it.
func (v volume) inlineMigrated(ctx context.Context) (Mounted, error) {
	mounted, err := v.publishMigrated(ctx)
	if err != nil {
		failure := v.fail(v.kind(), err)
		failure.locate(err)
		return Mounted{}, failure
	}
	return mounted, nil
}

func (v volume) publishMigrated(ctx context.Context) (Mounted, error) {
	rec, err := v.record()
	if err == nil && rec == nil {
		rec, err = v.translate(ctx)
	}
	if err != nil {
		return Mounted{}, at(opProcess, err)
	}
	return v.csi(ctx, rec)
}

func (v volume) translate(ctx context.Context) (*record, error) {
	pv, err := translator.TranslateInTreeInlineVolumeToCSI(klog.FromContext(ctx), v.spec, v.pod.Namespace)
	if err != nil {
		return nil, fmt.Errorf("failed to translate in-tree volume to CSI: %w", err)
	}
	// Its name is made of the disk's, which may be a path (the kubelet's EscapeQualifiedName).
	name := strings.ReplaceAll(pv.Name, "/", "~")
	return &record{Volume: v.spec.Name, PV: &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: pv.Spec}}, nil
}
