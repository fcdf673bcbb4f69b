// Package provider is vk-metal's side of virtual-kubelet: one worker per pod UID that
// observes units and records, resolves what a pod refers to, computes a plan (podplan),
// applies it and reports the pod's status (podstatus).
//
// It owns the life of pods: their restarts, their end, their status in the API and the
// clean-up of what pods left behind. It acts only through the interfaces in deps.go; it
// must not speak D-Bus, netlink or HTTP itself.
package provider
