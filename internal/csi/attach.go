package csi

import (
	"context"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// attachPatience is how long an attachment is waited for in silence, as a kubelet waits.
const attachPatience = 2 * time.Minute

// NotAttachedError says that the cluster has not attached the volume to this node.
type NotAttachedError struct {
	Reason string
	// Soon says that this is no news yet: attaching takes its time.
	Soon bool
}

// Error is the reason.
func (e *NotAttachedError) Error() string { return e.Reason }

// attached returns what the attachment tells the driver.
func (m *Manager) attached(ctx context.Context, s source) (map[string]string, error) {
	name := attachmentName(s, m.o.NodeName)
	attachment, err := m.o.Client.StorageV1().VolumeAttachments().Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err), err == nil && !attachment.Status.Attached && attachment.Status.AttachError == nil:
		return nil, m.notAttached(name, s)
	case err != nil:
		return nil, fmt.Errorf("failed to get volume attachment [id=%s]: %w", name, err)
	case !attachment.Status.Attached:
		return nil, &NotAttachedError{Reason: attachment.Status.AttachError.Message}
	}
	m.mu.Lock()
	delete(m.waiting, name)
	m.mu.Unlock()
	return attachment.Status.AttachmentMetadata, nil
}

func (m *Manager) notAttached(name string, s source) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	since, ok := m.waiting[name]
	if !ok {
		since = time.Now()
		m.waiting[name] = since
	}
	return &NotAttachedError{
		Reason: fmt.Sprintf("timed out waiting for external-attacher of %s CSI driver to attach volume %s", s.driver, s.handle),
		Soon:   time.Since(since) < attachPatience,
	}
}
