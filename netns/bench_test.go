package netns

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"
)

// BenchmarkSetup reports p50 and p99 of Setup and Teardown with 100 pods present.
func BenchmarkSetup(b *testing.B) {
	w := newWorld(b)
	m := w.manager()
	w.start(m, Config{PodCIDRs: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), dualStack[1]}, Masquerade: true})
	ctx := context.Background()
	for i := range 100 {
		setUp(b, m, fmt.Sprint("base", i))
	}
	var up, again, down []time.Duration
	timed := func(to *[]time.Duration, fn func() error) {
		start := time.Now()
		must(b, fn())
		*to = append(*to, time.Since(start))
	}
	n := 0
	steps, last := map[string]time.Duration{}, time.Now()
	m.onStep = func(s string) error {
		steps[s] += time.Since(last)
		last = time.Now()
		return nil
	}
	for b.Loop() {
		last = time.Now()
		n++
		pod := PodNetwork{PodUID: fmt.Sprint("u", n)}
		timed(&up, func() error { _, err := m.Setup(ctx, pod); return err })
		timed(&again, func() error { _, err := m.Setup(ctx, pod); return err })
		timed(&down, func() error { return m.Teardown(ctx, pod.PodUID) })
	}
	for s, d := range steps {
		b.Log(s, d/time.Duration(n))
	}
	for name, d := range map[string][]time.Duration{"setup": up, "again": again, "teardown": down} {
		slices.Sort(d)
		b.ReportMetric(float64(d[len(d)/2].Microseconds()), name+"-p50-µs")
		b.ReportMetric(float64(d[len(d)*99/100].Microseconds()), name+"-p99-µs")
	}
}
