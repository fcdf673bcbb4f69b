// Package seccomp turns seccomp profiles into classic-BPF programs for the kernel
// (seccomp(2), struct seccomp_data). Profiles are those of containers: the runtime's
// default, which is moby's and containerd's published one, and JSON files in the form of
// the OCI runtime specification with docker's additions (archMap, includes, excludes).
//
// It is pure: what comes out depends on the profile, the container's capabilities and the
// Host alone. It loads nothing and must not know pods.
package seccomp

//go:generate go run gen.go
