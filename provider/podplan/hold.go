package podplan

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Endpoint is what one EndpointSlice says of a pod.
type Endpoint struct {
	Slice       string `json:"slice"`
	Ready       bool   `json:"ready,omitempty"`
	Terminating bool   `json:"terminating,omitempty"`
	// Published says that the Service publishes addresses whether they are ready or not.
	Published bool `json:"published,omitempty"`
}

// withdrawn says that nobody is sent here any more, once everybody knows.
func (e Endpoint) withdrawn() bool { return e.Terminating && !e.Ready }

// counts says whether the endpoint will ever be withdrawn. One that ends and is ready at once is
// published whatever the pod is like (discovery/v1, EndpointConditions.Ready).
func (e Endpoint) counts() bool { return !e.Published && (!e.Terminating || !e.Ready) }

// Withdrawn says whether no endpoint of the list offers the pod to new clients.
func Withdrawn(list []Endpoint) bool {
	return !slices.ContainsFunc(list, func(e Endpoint) bool { return e.counts() && !e.withdrawn() })
}

// Offer is how the cluster's Services offer a pod to their clients, and how far this node
// has come with waiting until they do not.
type Offer struct {
	// Settle is how long other nodes may take to act on a slice; Percent is the part of the
	// grace period that the wait may take.
	Settle  time.Duration `json:"settle"`
	Percent int           `json:"percent"`
	// Unknown says that the slices have not been read yet.
	Unknown   bool       `json:"unknown,omitempty"`
	Endpoints []Endpoint `json:"endpoints,omitempty"`
	// Withdrawn is since when no endpoint offers the pod; zero while one does.
	Withdrawn time.Time `json:"withdrawn,omitzero"`
	// Begun and Over are when the hold began and ended; zero before.
	Begun time.Time `json:"begun,omitzero"`
	Over  time.Time `json:"over,omitzero"`
}

// unknownRetry is how often slices that are being read are asked for.
const unknownRetry = 250 * time.Millisecond

// Hold keeps preStop hooks and stop signals of a deleted pod back while clients are still
// sent to it: endpoints are removed beside the pod's termination, not before.
type Hold struct {
	Begun time.Time `json:"begun"`
	// Until is when it ends in any case.
	Until time.Time `json:"until"`
	// Offering are the slices that offer the pod; none while the withdrawal settles.
	Offering []string `json:"offering,omitempty"`
	// Settled is when it ends if the slices stay as they are.
	Settled time.Time `json:"settled,omitzero"`
}

// hold decides whether the end of a deleted pod is held back. A hold that is over never
// begins again, and none begins beside a kill.
func (d *decider) hold() {
	o := d.obs.Offer
	if o == nil || !o.Over.IsZero() || d.obs.Gone || d.pod.DeletionTimestamp == nil || !d.obs.anyRunning() || immediate(d.pod) {
		return
	}
	begun := o.Begun
	if begun.IsZero() {
		counts := slices.ContainsFunc(o.Endpoints, Endpoint.counts)
		if d.obs.anyKilling() || !counts && !o.Unknown {
			return
		}
		begun = d.obs.Now
	}
	hold := &Hold{Begun: begun, Until: begun.Add(PodGrace(d.pod) * time.Duration(o.Percent) / 100)}
	for _, e := range o.Endpoints {
		if e.counts() && !e.withdrawn() {
			hold.Offering = append(hold.Offering, e.Slice)
		}
	}
	end := hold.Until
	if o.Unknown {
		d.wake(d.obs.Now.Add(unknownRetry)) // that they are known now is told by nobody
	}
	if !o.Unknown && len(hold.Offering) == 0 && !o.Withdrawn.IsZero() {
		hold.Settled = o.Withdrawn.Add(o.Settle)
		if hold.Settled.Before(end) {
			end = hold.Settled
		}
	}
	if !d.obs.Now.Before(end) {
		return
	}
	d.out.Hold = hold
	d.wake(end)
}

// immediate says that the pod was deleted without a grace period.
func immediate(pod *corev1.Pod) bool {
	return pod.DeletionGracePeriodSeconds != nil && *pod.DeletionGracePeriodSeconds == 0
}

// held is how much of the grace period a hold has taken.
func (o Observed) held() time.Duration {
	switch {
	case o.Offer == nil, o.Offer.Begun.IsZero():
		return 0
	case o.Offer.Over.IsZero():
		return max(o.Now.Sub(o.Offer.Begun), 0)
	}
	return o.Offer.Over.Sub(o.Offer.Begun)
}

// anyKilling says whether the end of a process has begun.
func (o Observed) anyKilling() bool {
	for _, attempts := range o.Attempts {
		if slices.ContainsFunc(attempts, func(a Attempt) bool { return a.Killing && a.Phase == Running }) {
			return true
		}
	}
	return false
}
