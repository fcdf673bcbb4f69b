package main

import (
	"os"
	"runtime/debug"
	"runtime/metrics"
)

// How much the heap may grow between two collections once the cluster is known: an agent
// allocates little then, and Go's 100 would keep as much garbage as there is state. It is
// garbageRoom, within bounds: a small heap is not collected all the time, nor a big one for a
// few changes.
const (
	garbageRoom         = 12 << 20 // bytes
	leastGrow, mostGrow = 20, 50   // percent
)

// trimMemory gives back what a first look at the whole cluster took, and keeps the heap small
// from now on unless GOGC says how.
func trimMemory() {
	debug.FreeOSMemory() // collects: the live heap is known afterwards
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(growth(liveHeap()))
	}
}

// growth is by how many percent a live heap of so many bytes may grow.
func growth(live uint64) int {
	return int(min(max(garbageRoom*100/max(live, 1), leastGrow), mostGrow))
}

// liveHeap is what the last collection found in use, in bytes.
func liveHeap() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}
