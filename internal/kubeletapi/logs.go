package kubeletapi

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// containerLogs serves `kubectl logs`.
func (s *Server) containerLogs(w http.ResponseWriter, r *http.Request) {
	opts, err := parseLogOptions(r.URL.Query())
	if err != nil {
		http.Error(w, `{"message": "Unable to decode query."}`, http.StatusBadRequest)
		return
	}
	if err := checkLogOptions(opts); err != nil {
		http.Error(w, `{"message": "Invalid request."}`, http.StatusUnprocessableEntity)
		return
	}
	ref, pod, ok := s.find(w, r, fmt.Sprintf("pod %q does not exist", r.PathValue("pod")))
	if !ok {
		return
	}
	if !hasContainer(pod, ref.Container) {
		http.Error(w, fmt.Sprintf("container %q not found in pod %q", ref.Container, ref.Pod), http.StatusNotFound)
		return
	}
	opts.Container = ref.Container
	out := &logWriter{w: w, flush: opts.Follow}
	var stdout, stderr io.Writer
	if *opts.Stream != corev1.LogStreamStderr {
		stdout = out
	}
	if *opts.Stream != corev1.LogStreamStdout {
		stderr = out
	}
	w.Header().Set("Content-Type", "text/plain")
	if err := s.o.Pods.Logs(r.Context(), ref, opts, stdout, stderr); err != nil && !out.begun() {
		http.Error(w, err.Error(), http.StatusBadRequest)
	}
}

// parseLogOptions reads PodLogOptions from a query as the API machinery does. `tail` is the
// old name of tailLines; "all" means no limit.
func parseLogOptions(query url.Values) (*corev1.PodLogOptions, error) {
	opts := &corev1.PodLogOptions{
		Follow:     queryBool(query, "follow"),
		Previous:   queryBool(query, "previous"),
		Timestamps: queryBool(query, "timestamps"),
	}
	tail := query.Get("tailLines")
	if old := query.Get("tail"); old != "" {
		tail = strings.TrimSuffix(old, "all")
	}
	var errs []error
	for _, number := range []struct {
		text string
		dst  **int64
	}{{tail, &opts.TailLines}, {query.Get("limitBytes"), &opts.LimitBytes}, {query.Get("sinceSeconds"), &opts.SinceSeconds}} {
		if number.text == "" {
			continue
		}
		n, err := strconv.ParseInt(number.text, 10, 64)
		errs = append(errs, err)
		*number.dst = &n
	}
	if text := query.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339, text)
		errs = append(errs, err)
		opts.SinceTime = &metav1.Time{Time: at}
	}
	stream := corev1.LogStreamAll
	if text := query.Get("stream"); text != "" {
		stream = text
	}
	opts.Stream = &stream
	return opts, errors.Join(errs...)
}

// queryBool is true for a key that is there with anything but "false" and "0".
func queryBool(query url.Values, key string) bool {
	values, there := query[key]
	return there && len(values) > 0 && values[0] != "0" && !strings.EqualFold(values[0], "false")
}

// checkLogOptions is the API server's validation of PodLogOptions.
func checkLogOptions(opts *corev1.PodLogOptions) error {
	switch {
	case opts.TailLines != nil && *opts.TailLines < 0:
		return errors.New("tailLines is negative")
	case opts.LimitBytes != nil && *opts.LimitBytes < 1:
		return errors.New("limitBytes is below 1")
	case opts.SinceSeconds != nil && opts.SinceTime != nil:
		return errors.New("sinceSeconds and sinceTime exclude one another")
	case opts.SinceSeconds != nil && *opts.SinceSeconds < 1:
		return errors.New("sinceSeconds is below 1")
	}
	switch *opts.Stream {
	case corev1.LogStreamAll:
		return nil
	case corev1.LogStreamStdout, corev1.LogStreamStderr:
		if opts.TailLines != nil {
			return errors.New("tailLines and one stream exclude one another")
		}
		return nil
	}
	return fmt.Errorf("unknown stream %q", *opts.Stream)
}

// logWriter passes lines on and, for a follower, flushes each.
type logWriter struct {
	w     http.ResponseWriter
	flush bool

	mu    sync.Mutex
	wrote bool
}

// Write implements io.Writer.
func (l *logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wrote = l.wrote || len(p) > 0
	n, err := l.w.Write(p)
	if err == nil && l.flush {
		err = http.NewResponseController(l.w).Flush()
	}
	return n, err
}

func (l *logWriter) begun() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.wrote
}
