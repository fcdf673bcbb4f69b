package bench

import (
	"fmt"
	"slices"
	"time"
)

// Times are how long the same thing took, again and again.
type Times []time.Duration

// At is the time that a fraction q of all was not slower than; 0 for none.
func (t Times) At(q float64) time.Duration {
	if len(t) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(t))
	return sorted[int(q*float64(len(sorted)-1))]
}

// String shows the distribution in milliseconds.
func (t Times) String() string {
	return fmt.Sprintf("min %s p50 %s p90 %s p99 %s ms", ms(t.At(0)), ms(t.At(0.5)), ms(t.At(0.9)), ms(t.At(0.99)))
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f", float64(d)/float64(time.Millisecond)) }
