package probes

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// TestGrid: probes that begin at any time run together from their second run on, each
// with its exact period.
func TestGrid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture()
		for i := range 300 {
			target := targetOf(corev1.Container{ReadinessProbe: probeOf(fmt.Sprint(i), func(p *corev1.Probe) { p.PeriodSeconds = 1 + int32(i%2) })})
			target.PodUID = fmt.Sprint(i)
			f.Sync(target)
			time.Sleep(7 * time.Millisecond)
		}
		time.Sleep(10 * time.Second)
		times, runs := map[string]bool{}, map[string][]time.Duration{}
		for _, line := range strings.Split(f.execer.log(), ", ") {
			word, at, _ := strings.Cut(line, " ")
			when, err := time.ParseDuration(at + "s")
			if err != nil {
				t.Fatal(err)
			}
			if len(runs[word]) > 0 {
				times[at] = true // a first run is at its own time
			}
			runs[word] = append(runs[word], when.Round(time.Microsecond)) // seconds are printed as a float
		}
		if len(times) > 13*50 {
			t.Errorf("woke %d times in 13 s", len(times))
		}
		for word, all := range runs {
			checkRuns(t, word, all)
		}
		for i := range 300 {
			f.Stop(fmt.Sprint(i), "")
		}
	})
}

// checkRuns of probe number word, which was made after word times 7 ms.
func checkRuns(t *testing.T, word string, all []time.Duration) {
	t.Helper()
	var i int
	if _, err := fmt.Sscan(word, &i); err != nil {
		t.Fatal(err)
	}
	period := time.Duration(1+i%2) * time.Second
	if first := time.Duration(i) * 7 * time.Millisecond; all[0] != first {
		t.Errorf("%s first runs after %v, not at once (%v)", word, all[0], first)
	}
	if d := all[1] - all[0] - period; d.Abs() > grid/2 {
		t.Errorf("%s runs for the second time %v off", word, d)
	}
	for n := 2; n < len(all); n++ {
		if all[n]-all[n-1] != period {
			t.Errorf("%s runs %v after the last, not %v", word, all[n]-all[n-1], period)
		}
	}
}
