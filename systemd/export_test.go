package systemd

import (
	"testing"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// ScriptRunner runs shell scripts in containers of this machine, for tests of packages above.
func ScriptRunner(t *testing.T) func(script string, change func(*launchspec.Spec)) string {
	t.Helper()
	m := newMachine(t)
	return func(script string, change func(*launchspec.Spec)) string {
		return m.sh(script, func(a *attempt) { change(a.spec) })
	}
}
