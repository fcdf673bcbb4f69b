// Package conformance runs upstream's end-to-end suite against a cluster whose nodes
// are vk-metal machines, and counts strictly: a test that was asked for and did not
// run is a failure of the run. It owns the choice of tests, the runs' directories and
// the reports; it must not know how the cluster was made or what vk-metal does.
package conformance
