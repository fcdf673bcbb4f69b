package podplan

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "k8s.io/api/core/v1"
)

// offered is a deleted pod with one running container that one slice still offers, half a
// second into its hold.
func offered() (*corev1.Pod, *Observed) {
	now, grace := time.Unix(1_700_000_000, 0), int64(20)
	pod := basePod()
	pod.DeletionTimestamp, pod.DeletionGracePeriodSeconds = &metav1.Time{Time: now}, &grace
	return pod, &Observed{
		Now:      now,
		Attempts: map[string][]Attempt{"app": {{Phase: Running, Started: true, Ready: true, SpecHash: SpecHash(Containers(pod)[0])}}},
		Offer: &Offer{
			Settle: 2 * time.Second, Percent: 50, Begun: now.Add(-500 * time.Millisecond),
			Endpoints: []Endpoint{{Slice: "web-1", Ready: true}},
		},
	}
}

func TestHold(t *testing.T) {
	type wanted struct {
		held bool
		wake time.Duration // from now
		kill time.Duration // the grace of the kill, 0 for none
	}
	untilBound := wanted{held: true, wake: 9500 * time.Millisecond}
	for name, tc := range map[string]struct {
		change func(*corev1.Pod, *Observed)
		want   wanted
	}{
		"still offered":             {func(*corev1.Pod, *Observed) {}, untilBound},
		"it begins":                 {func(_ *corev1.Pod, o *Observed) { o.Offer.Begun = time.Time{} }, wanted{held: true, wake: 10 * time.Second}},
		"not ready, not ending yet": {func(_ *corev1.Pod, o *Observed) { o.Offer.Endpoints[0].Ready = false }, untilBound},
		"one of two withdrawn": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Endpoints = append(o.Offer.Endpoints, Endpoint{Slice: "web-2", Terminating: true})
		}, untilBound},
		"settling": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Endpoints, o.Offer.Withdrawn = []Endpoint{{Slice: "web-1", Terminating: true}}, o.Now.Add(-400*time.Millisecond)
		}, wanted{held: true, wake: 1600 * time.Millisecond}},
		"gone from the slices, settling": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Endpoints, o.Offer.Withdrawn = nil, o.Now
		}, wanted{held: true, wake: 2 * time.Second}},
		"settled": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun = o.Now.Add(-3 * time.Second)
			o.Offer.Endpoints, o.Offer.Withdrawn = nil, o.Now.Add(-2*time.Second)
		}, wanted{kill: 17 * time.Second}},
		"at the bound": {func(_ *corev1.Pod, o *Observed) { o.Offer.Begun = o.Now.Add(-10 * time.Second) }, wanted{kill: 10 * time.Second}},
		"the bound comes before the settling": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun, o.Offer.Withdrawn, o.Offer.Endpoints = o.Now.Add(-9*time.Second), o.Now, nil
		}, wanted{held: true, wake: time.Second}},
		"the grace period was shortened": {func(p *corev1.Pod, _ *Observed) { *p.DeletionGracePeriodSeconds = 1 }, wanted{kill: time.Second}},
		"over, and offered again": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun, o.Offer.Over = o.Now.Add(-5*time.Second), o.Now.Add(-2*time.Second)
		}, wanted{kill: 17 * time.Second}},
		"in no slice": {func(_ *corev1.Pod, o *Observed) { o.Offer.Begun, o.Offer.Endpoints = time.Time{}, nil }, wanted{kill: 20 * time.Second}},
		"published whatever it is like": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun, o.Offer.Endpoints[0].Published = time.Time{}, true
		}, wanted{kill: 20 * time.Second}},
		"ready although it ends": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun, o.Offer.Endpoints[0].Terminating = time.Time{}, true
		}, wanted{kill: 20 * time.Second}},
		"slices are being read": {func(_ *corev1.Pod, o *Observed) {
			o.Offer.Begun, o.Offer.Unknown, o.Offer.Endpoints = time.Time{}, true, nil
		}, wanted{held: true, wake: unknownRetry}},
		"nobody asks":             {func(_ *corev1.Pod, o *Observed) { o.Offer = nil }, wanted{kill: 20 * time.Second}},
		"the object is gone":      {func(_ *corev1.Pod, o *Observed) { o.Gone = true }, wanted{kill: 19500 * time.Millisecond}},
		"deleted with grace 0":    {func(p *corev1.Pod, _ *Observed) { *p.DeletionGracePeriodSeconds = 0 }, wanted{kill: time.Second}},
		"evicted":                 {func(_ *corev1.Pod, o *Observed) { o.Evict = &Ending{Reason: "Evicted"} }, wanted{kill: 19500 * time.Millisecond}},
		"its end has begun":       {func(_ *corev1.Pod, o *Observed) { o.Offer.Begun = time.Time{}; killing(o) }, wanted{kill: 20 * time.Second}},
		"nothing runs any more":   {func(_ *corev1.Pod, o *Observed) { o.Attempts["app"][0].Phase = Ended }, wanted{}},
		"not deleted, just ready": {func(p *corev1.Pod, _ *Observed) { p.DeletionTimestamp = nil }, wanted{}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, obs := offered()
			tc.change(pod, obs)
			d := Decide(pod, *obs)
			got := wanted{held: d.Hold != nil}
			if d.Hold != nil {
				got.wake = d.Wake.Sub(obs.Now)
			}
			if len(d.Kill) > 0 {
				got.kill = d.Kill[0].Grace
			}
			if got != tc.want {
				t.Errorf("got %+v, want %+v\n%+v", got, tc.want, d)
			}
			if d.Hold != nil && (!d.Ending || d.Done || len(d.Start) > 0) {
				t.Errorf("a held pod is not done and starts nothing: %+v", d)
			}
		})
	}
}

func killing(o *Observed) { o.Attempts["app"][0].Killing = true }

func TestHoldNamesTheSlices(t *testing.T) {
	pod, obs := offered()
	obs.Offer.Endpoints = append(obs.Offer.Endpoints, Endpoint{Slice: "b", Terminating: true}, Endpoint{Slice: "c"})
	if d := Decide(pod, *obs); !slices.Equal(d.Hold.Offering, []string{"web-1", "c"}) {
		t.Errorf("offering %v", d.Hold.Offering)
	}
}
