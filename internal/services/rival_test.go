package services

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestRival: a kube-proxy counts only if it works on our network namespace.
func TestRival(t *testing.T) {
	for _, c := range []struct {
		name, netns, cmdline string
		want                 bool
	}{
		{"kube-proxy", "net:[1]", "/usr/local/bin/kube-proxy\x00--config=x\x00", true},
		{"hyperkube", "net:[1]", "/hyperkube\x00proxy\x00", true},
		{"in a machine of its own", "net:[2]", "kube-proxy\x00", false},
		{"talks about it", "net:[1]", "grep\x00kube-proxy\x00", false},
		{"kernel thread", "net:[1]", "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			proc := t.TempDir()
			for pid, ns := range map[string]string{"self": "net:[1]", "17": c.netns, "irq": c.netns} {
				testnet.Must(t, os.MkdirAll(filepath.Join(proc, pid, "ns"), 0o755))
				testnet.Must(t, os.Symlink(ns, filepath.Join(proc, pid, "ns/net")))
			}
			testnet.Must(t, os.WriteFile(filepath.Join(proc, "17/cmdline"), []byte(c.cmdline), 0o644))
			if _, got := rival(proc, "self"); got != c.want {
				t.Errorf("found: %t, want %t", got, c.want)
			}
		})
	}
}
