package rig

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

// TestSettingsOfManyRigs: the first rig's settings reach the last one, whatever the
// order they go in; one that was deleted by hand keeps nobody from restoring.
func TestSettingsOfManyRigs(t *testing.T) {
	t.Setenv("VK_METAL_CACHE", t.TempDir())
	join := func(id string) *state {
		s := &state{Version: stateVersion, ID: id, BootID: hostBootID()}
		dir := t.TempDir()
		var err error
		if s.Sysctls, err = joinHost(dir, id); err == nil {
			err = writeState(dir, s)
		}
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	first := join("vk000001")
	if !maps.Equal(first.Sysctls, readSysctls()) {
		t.Errorf("the first rig noted %v", first.Sysctls)
	}
	first.Sysctls["fs/inotify/max_user_watches"] = "an old value"
	entry := filepath.Join(guestDir(), first.ID)
	text := `{"dir":"` + filepath.Dir(entry) + `","bootID":"` + hostBootID() + `","sysctls":{"kernel/none":"an old value"}}`
	if err := os.WriteFile(entry, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := writeState(filepath.Dir(entry), first); err != nil {
		t.Fatal(err)
	}
	second := join("vk000002")
	if got := second.Sysctls["kernel/none"]; got != "an old value" || len(second.Sysctls) != 1 {
		t.Errorf("the second rig noted %v", second.Sysctls)
	}
	if err := leaveHost(t.Context(), first); err != nil {
		t.Errorf("leave while another is up: %v", err) // it would fail to set "an old value"
	}
	if err := leaveHost(t.Context(), second); err == nil {
		t.Error("the last one restored nothing") // there is no kernel/none to set
	}
	if got := guests(""); len(got) != 1 {
		t.Errorf("rigs that are up: %v", got)
	}
	if err := os.RemoveAll(filepath.Dir(entry)); err != nil {
		t.Fatal(err)
	}
	if got := guests(""); len(got) != 0 {
		t.Errorf("rigs that are up after all: %v", got)
	}
}
