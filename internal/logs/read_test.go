package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// writeLog writes files (oldest first) as a log and returns its path.
func writeLog(t *testing.T, files ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	for i, content := range files {
		name := path
		if i < len(files)-1 {
			name = fmt.Sprintf("%s.20261120-10000%d.000000", path, i)
		}
		if err := os.WriteFile(name, []byte(content), logstream.LogMode); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

func at(second int) string { return fmt.Sprintf("2026-11-20T10:00:%02d.5Z", second) }

func TestRead(t *testing.T) {
	rotated := []string{
		at(1) + " stdout F one\n" + at(2) + " stderr F two\n",
		at(3) + " stdout P thr\n" + at(4) + " stdout F ee\n",
		at(5) + " stdout F \n" + "garbage\n" + at(6) + " stdout P:x fi\n" + at(7) + " stdout F ve\n" + at(8) + " stdout P en",
	}
	since := metav1.NewTime(time.Date(2026, 11, 20, 10, 0, 3, 0, time.UTC))
	tests := []struct {
		name string
		opts corev1.PodLogOptions
		want string
	}{
		{"all", corev1.PodLogOptions{}, "one\ntwo\nthree\n\nfive\n"},
		{"tail 0", corev1.PodLogOptions{TailLines: new(int64(0))}, ""},
		{"tail 1", corev1.PodLogOptions{TailLines: new(int64(2))}, "five\n"},
		{"tail into rotated", corev1.PodLogOptions{TailLines: new(int64(4))}, "three\n\nfive\n"},
		{"tail more than all", corev1.PodLogOptions{TailLines: new(int64(99))}, "one\ntwo\nthree\n\nfive\n"},
		{"since", corev1.PodLogOptions{SinceTime: &since}, "three\n\nfive\n"},
		{"limit", corev1.PodLogOptions{LimitBytes: new(int64(6))}, "one\ntw"},
		{"limit 0", corev1.PodLogOptions{LimitBytes: new(int64(0))}, ""},
		{"stderr", corev1.PodLogOptions{Stream: new(corev1.LogStreamStderr)}, "two\n"},
		{
			"timestamps",
			corev1.PodLogOptions{Timestamps: true, TailLines: new(int64(4))},
			at(3) + " three\n" + at(5) + " \n" + at(6) + " five\n",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			if err := Read(t.Context(), writeLog(t, rotated...), &test.opts, nil, &out, &out); err != nil {
				t.Fatal(err)
			}
			if out.String() != test.want {
				t.Errorf("got %q, want %q", out.String(), test.want)
			}
		})
	}
}

func TestReadMissing(t *testing.T) {
	err := Read(t.Context(), filepath.Join(t.TempDir(), "0.log"), nil, nil, io.Discard, io.Discard)
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v, want a missing file", err)
	}
}

// TestTailAgainstForward compares the backward scan with counting from the front, with
// lines of all sizes around the scan's block.
func TestTailAgainstForward(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 30 {
		var lines []string
		files := make([]string, 1+rng.IntN(3))
		for i := range files {
			for range rng.IntN(60) {
				text := strings.Repeat("x", []int{0, 1, 100, 4000, 16384, scanBlock - 40}[rng.IntN(6)])
				line := ""
				for rng.IntN(4) == 0 {
					files[i] += at(1) + " stdout P " + text + "\n"
					line += text
				}
				files[i] += at(1) + " stdout F " + text + "\n"
				lines = append(lines, line+text+"\n")
			}
		}
		path := writeLog(t, files...)
		for range 20 {
			n := rng.IntN(len(lines) + 3)
			var out bytes.Buffer
			if err := Read(t.Context(), path, &corev1.PodLogOptions{TailLines: new(int64(n))}, nil, &out, &out); err != nil {
				t.Fatal(err)
			}
			if want := strings.Join(lines[max(0, len(lines)-n):], ""); out.String() != want {
				t.Fatalf("round %d, tail %d of %d: got %d bytes, want %d", round, n, len(lines), out.Len(), len(want))
			}
		}
	}
}

func TestTail(t *testing.T) {
	path := writeLog(t, at(1)+" stdout F alpha\n"+at(2)+" stderr F beta\n"+at(3)+" stdout P gam\n")
	for _, test := range []struct {
		lines, bytes int
		want         string
	}{{80, 2048, "alpha\nbeta\ngam"}, {1, 2048, "gam"}, {80, 5, "a\ngam"}} {
		got, err := Tail(path, test.lines, test.bytes)
		if err != nil || got != test.want {
			t.Errorf("Tail(%d, %d) = %q, %v; want %q", test.lines, test.bytes, got, err, test.want)
		}
	}
}

// TestFollow appends, rotates faster than the reader may look, and completes the log.
func TestFollow(t *testing.T) {
	path := writeLog(t, "")
	pr, pw := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := Read(t.Context(), path, &corev1.PodLogOptions{Follow: true}, func() bool { return true }, pw, pw)
		_ = pw.CloseWithError(err)
		done <- err
	}()
	var want strings.Builder
	for i := range 300 {
		appendFile(t, path, fmt.Sprintf("%s stdout F line %d\n", at(1), i))
		fmt.Fprintf(&want, "line %d\n", i)
		if i%50 == 49 {
			rotate(t, path, i)
		}
	}
	appendFile(t, path, at(1)+" stdout P en")
	appendFile(t, path, "d\n")
	want.WriteString("end")
	if err := os.Chmod(path, logstream.CompleteMode); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(pr)
	if err := errors.Join(err, <-done); err != nil {
		t.Fatal(err)
	}
	if string(got) != want.String() {
		t.Errorf("followed %d bytes, want %d", len(got), want.Len())
	}
}

func TestFollowEndsWithContext(t *testing.T) {
	path := writeLog(t, at(1)+" stdout F x\n")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := Read(ctx, path, &corev1.PodLogOptions{Follow: true}, func() bool { return true }, io.Discard, nil)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func appendFile(t *testing.T, path, text string) {
	t.Helper()
	file, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, logstream.LogMode)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

func rotate(t *testing.T, path string, i int) {
	t.Helper()
	if err := os.Rename(path, fmt.Sprintf("%s.20261120-100000.%06d", path, i)); err != nil {
		t.Fatal(err)
	}
	appendFile(t, path, "")
}
