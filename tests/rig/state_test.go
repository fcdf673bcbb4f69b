package rig

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestReserveKeepsOthersOut(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "below", "state")
	release, err := Reserve(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Reserve(dir + "/"); err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "another run") {
		t.Errorf("a second run is told %v", err)
	}
	if other, err := Reserve(dir + "-2"); err != nil {
		t.Errorf("another directory: %v", err)
	} else {
		other()
	}
	release()
	again, err := Reserve(dir)
	if err != nil {
		t.Fatalf("after the first has ended: %v", err)
	}
	again()
}
