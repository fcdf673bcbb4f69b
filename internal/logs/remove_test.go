package logs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// TestRemoveAll leaves other pods' streams alone, those too whose UIDs begin alike.
func TestRemoveAll(t *testing.T) {
	layout := paths.Layout{Run: t.TempDir()}
	if err := RemoveAll(layout, "u1"); err != nil {
		t.Errorf("without any: %v", err)
	}
	for _, name := range []string{"u1.main.0", ".new.u1.main.1", ".done.u1.main.2", "u12.main.0", "u2.u1.0"} {
		if err := os.MkdirAll(filepath.Join(layout.LogStreams(), name), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(layout.LogStreams(), "u1.main.0.ended"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := RemoveAll(layout, "u1"); err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(layout.LogStreams())
	if err != nil || len(entries) != 2 {
		t.Errorf("left: %v (%v)", entries, err)
	}
}
