package provider

import (
	"fmt"
	"os"
	"path/filepath"
)

// keepPrivate closes the directories of pods to everybody but root. What containers write
// there may be set-user-ID for root, or secret; other users of the host must not reach it
// (CVE-2021-41103).
func (p *Provider) keepPrivate() error {
	for _, dir := range []string{filepath.Dir(p.deps.Layout.PodLib("pod")), filepath.Dir(p.deps.Layout.PodRun("pod"))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory of pods: %w", err)
		}
		if err := os.Chmod(dir, 0o700); err != nil {
			return fmt.Errorf("close directory of pods: %w", err)
		}
	}
	return nil
}
