package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
)

// expand makes the file system as large as its volume has become, if the claim says that this
// is still to be done, and then tells the claim.
func (p *publishing) expand(ctx context.Context) error {
	if p.v.PV == nil || p.v.Claim == "" || !p.caps[canExpand] || p.s.readOnly {
		return nil
	}
	claims := p.m.o.Client.CoreV1().PersistentVolumeClaims(p.v.Pod.Namespace)
	claim, err := claims.Get(ctx, p.v.Claim, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("expand volume %s: read claim: %w", p.v.Name, err)
	}
	if !Growing(claim) {
		return nil
	}
	pv, err := p.m.o.Client.CoreV1().PersistentVolumes().Get(ctx, p.v.PV.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("expand volume %s: %w", p.v.Name, err)
	}
	size := pv.Spec.Capacity[corev1.ResourceStorage]
	has, known := claim.Status.Capacity[corev1.ResourceStorage]
	if !known || size.Cmp(has) <= 0 {
		return nil
	}
	secrets, err := p.m.secret(ctx, "NodeExpandSecretRef", p.v.PV.Spec.CSI.NodeExpandSecretRef)
	if err != nil {
		return err
	}
	request := &csispec.NodeExpandVolumeRequest{
		VolumeId: p.s.handle, VolumePath: p.m.publishPath(string(p.v.Pod.UID), p.v.Name, p.s),
		CapacityRange:    &csispec.CapacityRange{RequiredBytes: size.Value()},
		VolumeCapability: p.s.capability(p.caps, nil), Secrets: secrets,
	}
	if p.caps[canStage] {
		request.StagingTargetPath = p.m.stagingPath(p.v.Name, p.s)
	}
	if _, err := p.driver.client.NodeExpandVolume(ctx, request); err != nil {
		return fmt.Errorf("expand volume %s: %w", p.v.Name, err)
	}
	if err := TellGrown(ctx, p.m.o.Client, claim, size); err != nil {
		return fmt.Errorf("expand volume %s: %w", p.v.Name, err)
	}
	return nil
}

// TellGrown says in the claim that the volume has the size, and that nothing is left to be done.
func TellGrown(ctx context.Context, client kubernetes.Interface, claim *corev1.PersistentVolumeClaim, size resource.Quantity) error {
	patch, err := expandedPatch(claim, size.String())
	if err != nil {
		return err
	}
	_, err = client.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(ctx, claim.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil {
		return fmt.Errorf("tell claim: %w", err)
	}
	return nil
}

// Growing says whether the cluster has made the volume larger and the node's part is missing.
func Growing(claim *corev1.PersistentVolumeClaim) bool {
	switch claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage] {
	case corev1.PersistentVolumeClaimNodeResizePending, corev1.PersistentVolumeClaimNodeResizeInProgress:
		return true
	}
	return slices.ContainsFunc(claim.Status.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimFileSystemResizePending && c.Status == corev1.ConditionTrue
	})
}

// expandedPatch says that nothing is left to be done.
func expandedPatch(claim *corev1.PersistentVolumeClaim, size string) ([]byte, error) {
	conditions := slices.DeleteFunc(slices.Clone(claim.Status.Conditions), func(c corev1.PersistentVolumeClaimCondition) bool {
		return c.Type == corev1.PersistentVolumeClaimResizing || c.Type == corev1.PersistentVolumeClaimFileSystemResizePending ||
			c.Type == corev1.PersistentVolumeClaimNodeResizeError
	})
	return json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": claim.ResourceVersion},
		"status": map[string]any{
			"capacity": map[string]string{string(corev1.ResourceStorage): size}, "conditions": conditions,
			"allocatedResourceStatuses": map[string]any{string(corev1.ResourceStorage): nil},
		},
	})
}
