package main

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGrowthOfTheHeap(t *testing.T) {
	for live, want := range map[uint64]int{
		0:          mostGrow,
		15 << 20:   mostGrow, // an agent with few Services
		32 << 20:   37,       // 12 MiB
		58 << 20:   20,       // 10,000 Services
		1000 << 20: leastGrow,
	} {
		if got := growth(live); got != want {
			t.Errorf("a live heap of %d MiB may grow by %d %%, want %d", live>>20, got, want)
		}
	}
}

func TestTrimMemoryReadsTheLiveHeap(t *testing.T) {
	t.Setenv("GOGC", "")
	before := debug.SetGCPercent(100)
	t.Cleanup(func() { debug.SetGCPercent(before) })
	held := make([]byte, 200<<20)
	trimMemory()
	set := debug.SetGCPercent(100)
	runtime.KeepAlive(held)
	if set != leastGrow {
		t.Errorf("with 200 MiB in use the heap may grow by %d %%, want %d", set, leastGrow)
	}
}
