package csi

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// NotAttachedError says that the cluster has not attached the volume to this node.
type NotAttachedError struct {
	Reason string
	// Waiting says that nothing has failed: attaching takes its time.
	Waiting bool
}

// Error is the reason.
func (e *NotAttachedError) Error() string { return e.Reason }

// attached returns what the attachment tells the driver.
func (m *Manager) attached(ctx context.Context, s source) (map[string]string, error) {
	name := attachmentName(s, m.o.NodeName)
	attachment, err := m.o.Client.StorageV1().VolumeAttachments().Get(ctx, name, metav1.GetOptions{})
	switch {
	// A node may not get, nor know that there is none of, what has no volume of its own.
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), err == nil && !attachment.Status.Attached && attachment.Status.AttachError == nil:
		return nil, &NotAttachedError{
			Reason:  fmt.Sprintf("timed out waiting for external-attacher of %s CSI driver to attach volume %s", s.driver, s.handle),
			Waiting: true,
		}
	case err != nil:
		return nil, fmt.Errorf("failed to get volume attachment [id=%s]: %w", name, err)
	case !attachment.Status.Attached:
		return nil, &NotAttachedError{Reason: attachment.Status.AttachError.Message}
	}
	return attachment.Status.AttachmentMetadata, nil
}
