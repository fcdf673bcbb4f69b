package bench

import (
	"testing"
	"time"
)

func TestTimes(t *testing.T) {
	var times Times
	if times.At(0.5) != 0 {
		t.Errorf("the median of none is %s", times.At(0.5))
	}
	for i := range 100 {
		times = append(times, time.Duration(100-i)*time.Millisecond)
	}
	if got, want := times.String(), "min 1.0 p50 50.0 p90 90.0 p99 99.0 ms"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if times[0] != 100*time.Millisecond {
		t.Error("the order was changed")
	}
}
