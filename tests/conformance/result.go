package conformance

import (
	"strings"
	"time"

	"github.com/onsi/ginkgo/v2/types"
)

// State is how a test ended.
type State string

// The states of a test.
const (
	Passed  State = "passed"
	Failed  State = "failed"
	Skipped State = "skipped" // it decided itself that it cannot run
	Missing State = "missing" // it was asked for and there is no trace of it
)

// Result is what is known of one test.
type Result struct {
	Name    string    `json:"name"`
	State   State     `json:"state"`
	Seconds float64   `json:"seconds"`
	Started time.Time `json:"started,omitzero"`
	// Message is why the test failed or was skipped, Location where in upstream's source.
	Message  string `json:"message,omitempty"`
	Location string `json:"location,omitempty"`
}

// resultOf reads a spec of Ginkgo's report; ok is false for one that did not end (it
// was not chosen, or the run was interrupted).
func resultOf(spec types.SpecReport) (result Result, ok bool) {
	if spec.LeafNodeType != types.NodeTypeIt {
		return Result{}, false
	}
	result = Result{
		Name: spec.FullText(), Seconds: spec.RunTime.Seconds(), Started: spec.StartTime,
		Message: strings.TrimSpace(spec.Failure.Message),
	}
	if spec.Failure.Location.FileName != "" {
		result.Location = spec.Failure.Location.String()
	}
	result.State, ok = stateOf(spec)
	return result, ok
}

// stateOf maps Ginkgo's states. A spec that was filtered out is skipped without a message.
func stateOf(spec types.SpecReport) (state State, ok bool) {
	switch spec.State {
	case types.SpecStatePassed:
		return Passed, true
	case types.SpecStateFailed, types.SpecStatePanicked, types.SpecStateTimedout:
		return Failed, true
	case types.SpecStateSkipped:
		return Skipped, spec.Failure.Message != ""
	default:
		return Missing, false
	}
}
