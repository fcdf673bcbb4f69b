// Package policy enforces networking.k8s.io/v1 NetworkPolicy for the pods of one node.
//
// The pipeline: compile (pure: NetworkPolicy → Policy) → engine (pods, namespaces, policies →
// Content, a printable value, and what changed of it) → table (one netlink transaction per
// change) → cut (ends flows that are not allowed any more). It owns the nftables table
// vk-metal-policy of the family inet and touches nothing else. It knows pods by their
// addresses and by the link group of their interfaces, and must not know how pods are run.
package policy
