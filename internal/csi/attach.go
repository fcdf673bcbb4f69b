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
	// Exhausted says that the node has as many volumes as it can have, for a driver whose object
	// asks for its allocatable to be kept up to date.
	Exhausted bool
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
		failed := attachment.Status.AttachError
		return nil, &NotAttachedError{Reason: failed.Message, Exhausted: exhausted(failed)}
	}
	return attachment.Status.AttachmentMetadata, nil
}
