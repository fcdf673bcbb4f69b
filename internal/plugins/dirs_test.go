package plugins

import (
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// privately runs f on a thread with a mount namespace of its own, which ends with it.
func privately(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread goes with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			t.Error(err)
			return
		}
		f()
	}()
	<-done
}

func TestMountsOfPodsAreShared(t *testing.T) {
	layout := paths.Layout{Kubelet: filepath.Join(t.TempDir(), "kubelet")}
	privately(t, func() {
		for range 2 { // the second time there is nothing to do
			if err := MakeDirs(layout); err != nil {
				t.Error(err)
				return
			}
		}
		f, err := os.Open("/proc/thread-self/mountinfo")
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		mounts, err := mountinfo.GetMountsFromReader(f, mountinfo.SingleEntryFilter(layout.Kubelet))
		if err != nil || len(mounts) != 1 || !strings.Contains(mounts[0].Optional, "shared:") {
			t.Errorf("mounts at %s: %v %v", layout.Kubelet, mounts, err)
		}
	})
}
