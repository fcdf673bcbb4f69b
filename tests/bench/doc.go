// Package bench measures pods on one machine of the rig against what they cannot be faster
// than, all in the same run: figures of a host that does other work as well are worth
// something as ratios only. make bench runs it.
//
// For pods it prints as well where the time goes (the agent's own histograms) and whose
// processor time it is. With VK_METAL_BENCH_STATE it measures on a cluster that is up (metalrig
// up --state) and leaves it; into VK_METAL_BENCH_PROFILE it writes the agent's profile of the burst,
// beside it (.N) its heap with N Services.
package bench
