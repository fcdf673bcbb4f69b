package logs

import (
	"errors"
	"io"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// errLimit says that opts.LimitBytes have been delivered.
var errLimit = errors.New("log limit reached")

const flushSize = 64 << 10

// output filters records and writes their contents, in large writes, in order.
type output struct {
	stdout, stderr io.Writer // nil: left out
	since          time.Time
	timestamps     bool
	limit          int64 // bytes still allowed, negative for no limit

	lineStart bool // a time stamp belongs to the next byte
	buf       []byte
	bufErr    bool // buf belongs to stderr
}

func newOutput(opts *corev1.PodLogOptions, stdout, stderr io.Writer) *output {
	o := &output{stdout: stdout, stderr: stderr, timestamps: opts.Timestamps, limit: -1, lineStart: true}
	if opts.Stream != nil {
		switch *opts.Stream {
		case corev1.LogStreamStdout:
			o.stderr = nil
		case corev1.LogStreamStderr:
			o.stdout = nil
		}
	}
	if opts.LimitBytes != nil && *opts.LimitBytes >= 0 {
		o.limit = *opts.LimitBytes
	}
	if opts.SinceTime != nil {
		o.since = opts.SinceTime.Time
	} else if opts.SinceSeconds != nil {
		o.since = time.Now().Add(-time.Duration(*opts.SinceSeconds) * time.Second)
	}
	return o
}

// record takes one line of the file, without its newline. Lines that are not CRI
// records are passed over, as a kubelet does.
func (o *output) record(line []byte) error {
	r, ok := parseRecord(line)
	if !ok || o.writer(r.stderr) == nil {
		return nil
	}
	if !o.since.IsZero() && r.before(o.since) {
		return nil
	}
	if o.bufErr != r.stderr || len(o.buf) >= flushSize {
		if err := o.flush(); err != nil {
			return err
		}
		o.bufErr = r.stderr
	}
	return o.add(r)
}

func (o *output) add(r record) error {
	start := len(o.buf)
	if o.timestamps && o.lineStart {
		o.buf = append(o.buf, r.time...)
		o.buf = append(o.buf, ' ')
	}
	o.buf = append(o.buf, r.content...)
	if !r.partial {
		o.buf = append(o.buf, '\n')
	}
	o.lineStart = !r.partial
	if o.limit < 0 {
		return nil
	}
	added := int64(len(o.buf) - start)
	if added < o.limit {
		o.limit -= added
		return nil
	}
	o.buf = o.buf[:start+int(o.limit)]
	o.limit = 0
	return errLimit
}

func (o *output) writer(stderr bool) io.Writer {
	if stderr {
		return o.stderr
	}
	return o.stdout
}

func (o *output) flush() error {
	if len(o.buf) == 0 {
		return nil
	}
	_, err := o.writer(o.bufErr).Write(o.buf)
	o.buf = o.buf[:0]
	return err
}
