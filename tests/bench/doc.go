// Package bench measures pods on one machine of the rig against what they cannot be faster
// than, all in the same run: figures of a host that does other work as well are worth
// something as ratios only. make bench runs it.
package bench
