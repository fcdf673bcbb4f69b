package main

import (
	"os"
	"runtime/debug"
)

// gcPercent is how much the heap may grow between two collections once the cluster is known: an
// agent allocates little then, and Go's 100 would keep as much garbage as there is state.
const gcPercent = 50

// trimMemory gives back what a first look at the whole cluster took, and keeps the heap small
// from now on unless GOGC says how.
func trimMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	debug.FreeOSMemory()
}
