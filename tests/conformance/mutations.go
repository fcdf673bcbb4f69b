package conformance

import "slices"

// MutationTag is the build tag of a vk-metal that can be made to err, MutationVariable
// the environment variable that names how.
const (
	MutationTag      = "mutations"
	MutationVariable = "VK_METAL_MUTATION"
)

// NoMutation stands for an agent without a fault.
const NoMutation = "none"

// Mutation is a way in which a vk-metal errs, and the tests that must find it.
type Mutation struct {
	Name string
	// Fault says it in words.
	Fault string
	Tests []string
}

// Mutations are the ones that the suite is judged by.
var Mutations = []Mutation{
	{"probes-succeed", "every probe succeeds", []string{
		"[sig-node] Probing container should be restarted with a /healthz http liveness probe [NodeConformance] [Conformance]",
		"[sig-node] Probing container with readiness probe that fails should never be ready and never restart [NodeConformance] [Conformance]",
	}},
	{"exec-nothing", "exec runs nothing and reports success", []string{
		"[sig-node] Pods should support remote command execution over websockets [NodeConformance] [Conformance]",
		"[sig-node] KubeletManagedEtcHosts should test kubelet managed /etc/hosts file [NodeConformance] [Conformance]",
	}},
	{"no-term", "a container that is to stop gets no TERM, only KILL after its grace period", []string{
		// No conformance test minds a container that is killed at the end of its grace period.
		"[sig-node] Lifecycle sleep action zero value when create a pod with lifecycle hook using sleep action with a duration of zero seconds prestop hook using sleep action with zero duration",
	}},
	{"stale-pod-ip", "pods report the address of the node's first pod", []string{
		"[sig-network] Networking Granular Checks: Pods should function for intra-pod communication: http [NodeConformance] [Conformance]",
	}},
	{"no-limits", "neither requests nor limits of CPU and memory are set", []string{
		"[sig-node] Pod InPlace Resize Container resize pod via the replace endpoint [MinimumKubeletVersion:1.34] [Conformance]",
	}},
}

// MutationTests are the tests of all mutations, sorted: an agent that does not err passes them.
func MutationTests() []string {
	var all []string
	for _, mutation := range Mutations {
		all = append(all, mutation.Tests...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// Survivors are the planned tests that did not fail: under a mutation there may be none.
func (r *Run) Survivors() []Result {
	var all []Result
	for _, name := range r.Plan.Tests {
		if result := r.outcome(name); result.State != Failed {
			all = append(all, result)
		}
	}
	return all
}
