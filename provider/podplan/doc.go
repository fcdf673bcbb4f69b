// Package podplan decides what happens to a pod next. It is pure: pod, resolved inputs,
// observed state and the time go in, a printable plan comes out. It must not know how a
// plan is applied: no client, no file, no clock, no systemd connection.
//
// Decide says which containers to start, kill and wait for (the kubelet's rules for init
// containers, sidecars, restarts and back-off); Build says exactly how one attempt of one
// container is started; For puts both together for `vk-metal plan`.
package podplan
