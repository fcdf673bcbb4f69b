package objects

import (
	"context"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// Delays between two tries of a request that is refused: half a second in all.
const (
	firstRefusal = 2 * time.Millisecond
	lastRefusal  = 256 * time.Millisecond
)

// authorized repeats a request that the API server refuses. A node may ask for what its pods
// refer to; the authorizer (plugin/pkg/auth/authorizer/node) learns of a new pod by a watch, as
// we do, and often later than we.
func authorized(ctx context.Context, request func() error) error {
	for delay := firstRefusal; ; delay *= 2 {
		err := request()
		if !apierrors.IsForbidden(err) || delay > lastRefusal {
			return err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}
