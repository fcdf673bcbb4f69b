package provider

// Steps are all names that StepHook is called with: the places where a fault test kills
// the agent. A test compares the list with what a pod's life really passes.
func Steps() []string {
	steps := []string{"adopt/after"}
	for _, effect := range []string{
		"allocate", "slice", "network", "sandbox", "volumes", "image", "log", "record", "launch-spec", "start", "started", "status", "resize",
		"completed", "clean", "hold", "kill-record", "prestop", "term", "kill", "delete", "release",
	} {
		steps = append(steps, effect+"/before", effect+"/after")
	}
	return append(steps, "release.slice/after", "release.network/after", "release.volumes/after", "remove/before", "remove/after")
}
