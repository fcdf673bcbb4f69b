// Package systemd is all that vk-metal says to systemd and reads from it: slices,
// transient units, signals, unit state, exit records, cgroup figures, exec into a
// running unit. It knows units and processes; it must not know pods' meaning, images,
// networks or the API server.
package systemd
