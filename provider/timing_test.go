package provider

import "testing"

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

func TestQuiet(t *testing.T) {
	p := &Provider{timings: newTimings()}
	workers := [2]*worker{{p: p}, {p: p}}
	for _, w := range workers {
		w.beginStart()
		if !isClosed(p.Quiet()) {
			t.Fatal("a pod that ran before is waited for")
		}
		w.beginProgress()
	}
	for _, w := range workers {
		w.beginStart()
		w.beginStart()
	}
	quiet := p.Quiet()
	workers[0].endStart()
	workers[0].endStart()
	if isClosed(quiet) {
		t.Fatal("quiet while a pod is being started")
	}
	workers[1].reached(untilReported)
	workers[1].endStart()
	if !isClosed(quiet) || !isClosed(p.Quiet()) {
		t.Fatal("not quiet when all pods have been started")
	}
	workers[1].beginStart()
	if !isClosed(p.Quiet()) {
		t.Fatal("a later container of a reported pod is waited for")
	}
}
