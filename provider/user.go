package provider

import (
	"path/filepath"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// startedAs is who the launcher resolved the attempt's user to, nil where it left no word.
func (w *worker) startedAs(rec attemptRecord) *corev1.LinuxContainerUser {
	var process launchspec.Process
	path := filepath.Join(w.p.deps.Layout.AttemptRun(string(w.uid), rec.Container, rec.Number), launchspec.ProcessFile)
	if readJSON(path, &process) != nil {
		return nil
	}
	user := &corev1.LinuxContainerUser{UID: int64(process.UID), GID: int64(process.GID)}
	for _, group := range process.Groups {
		user.SupplementalGroups = append(user.SupplementalGroups, int64(group))
	}
	return user
}
