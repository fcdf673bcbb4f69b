//go:build linux

package sandbox

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func BenchmarkEnsure(b *testing.B) {
	for name, users := range map[string]bool{"own users": true, "host's users": false} {
		b.Run(name, func(b *testing.B) {
			layout := paths.Layout{Run: b.TempDir()}
			m := New(layout)
			for b.Loop() {
				if _, err := m.Ensure(b.Context(), "u1", Options{Users: users}); err != nil {
					b.Fatal(err)
				}
				_ = unix.Unmount(layout.Namespace("u1", "net"), unix.MNT_DETACH)
				_ = os.Remove(layout.Namespace("u1", "net"))
				if err := m.Remove(b.Context(), "u1"); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
