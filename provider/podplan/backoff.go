package podplan

import "time"

// The kubelet's container back-off (pkg/kubelet/kubelet.go: backOffPeriod,
// MaxCrashLoopBackOff; client-go/util/flowcontrol/backoff.go).
const (
	BackoffInitial = 10 * time.Second
	BackoffMax     = 300 * time.Second
	// backoffReset of running forgets the delay: twice the maximum.
	backoffReset = 2 * BackoffMax
	// startErrorShown is how long a failed start is shown as RunContainerError before
	// it becomes CrashLoopBackOff: a kubelet looks again after that time.
	startErrorShown = 10 * time.Second
)

// heldUntil returns when the container may be restarted after its attempt prev ended. The
// first restart is never held back.
func heldUntil(prev Attempt) time.Time {
	if expired(prev) {
		return prev.heldFrom()
	}
	return prev.heldFrom().Add(prev.Backoff)
}

// heldFrom is when the attempt ended, for what is reckoned from then on.
func (a Attempt) heldFrom() time.Time {
	if a.HeldFrom.IsZero() {
		return a.FinishedAt
	}
	return a.HeldFrom
}

// nextBackoff is the delay recorded with the attempt that follows prev.
func nextBackoff(prev Attempt) time.Duration {
	if expired(prev) {
		return BackoffInitial
	}
	return min(2*prev.Backoff, BackoffMax)
}

// expired says that prev carries no delay: it is a first attempt, or ran for long.
func expired(prev Attempt) bool {
	return prev.Backoff == 0 || prev.FinishedAt.Sub(prev.CreatedAt) > backoffReset
}
