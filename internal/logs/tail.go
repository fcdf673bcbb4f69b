package logs

import (
	"context"

	corev1 "k8s.io/api/core/v1"
)

// Tail returns the end of the log at path, both streams: at most maxLines lines and of
// these at most the last maxBytes bytes. It serves termination messages by
// FallbackToLogsOnError (a kubelet takes 80 lines, 2048 bytes).
func Tail(path string, maxLines, maxBytes int) (string, error) {
	lines := int64(maxLines)
	end := tailBuffer{max: maxBytes}
	err := Read(context.Background(), path, &corev1.PodLogOptions{TailLines: &lines}, nil, &end, &end)
	return string(end.data), err
}

// tailBuffer keeps the last max bytes written to it.
type tailBuffer struct {
	max  int
	data []byte
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.data = append(b.data, p...)
	if over := len(b.data) - b.max; over > 0 {
		b.data = append(b.data[:0], b.data[over:]...)
	}
	return len(p), nil
}
