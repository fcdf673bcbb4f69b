package provider

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

func TestSubPathsStayInTheirVolume(t *testing.T) {
	outside := t.TempDir()
	volume := t.TempDir()
	if err := os.Chmod(volume, 0o770); err != nil {
		t.Fatal(err)
	}
	for link, target := range map[string]string{"out": outside, "up": "..", "in": "real"} {
		if err := os.Symlink(target, filepath.Join(volume, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(volume, "real"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		sub  string
		fine bool
	}{
		{"a/b/c", true},
		{"a/b/c", true},
		{"in/x", true},
		{"real", true},
		{"out/x", false},
		{"up/x", false},
		{"../x", false},
		{"a/../../x", false},
	} {
		err := makeSubPaths([]launchspec.Mount{{Kind: launchspec.MountBind, Source: volume, SubPath: tc.sub}})
		if (err == nil) != tc.fine {
			t.Errorf("%s: %v", tc.sub, err)
		}
	}
	if info, err := os.Stat(filepath.Join(volume, "a", "b", "c")); err != nil || info.Mode().Perm() != 0o770 {
		t.Errorf("a/b/c is not as open as its volume: %v %v", info, err)
	}
	if entries, _ := os.ReadDir(outside); len(entries) > 0 {
		t.Errorf("made outside of the volume: %v", entries)
	}
	if _, err := os.Stat(filepath.Join(volume, "real", "x")); err != nil {
		t.Error(err)
	}
}
