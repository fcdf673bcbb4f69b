package logs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// safetyNet is how often a follower looks again although inotify said nothing: it
// bounds how long it outlives a container whose log was never completed.
const safetyNet = 5 * time.Second

// Read writes the log at path, rotated files included, to stdout and stderr (which may
// be one and the same; nil leaves a stream out) the way `kubectl logs` asks for. Which
// attempt's log is read, `previous` thus, is the caller's choice of path.
//
// With opts.Follow it goes on, woken by inotify, until the log writer has completed
// the log, or running says false and everything is delivered. running may be nil and
// should say true until the container is reported as terminated. ctx ending is
// returned as its error, a missing log as os.ErrNotExist.
func Read(ctx context.Context, path string, opts *corev1.PodLogOptions, running func() bool, stdout, stderr io.Writer) error {
	if opts == nil {
		opts = &corev1.PodLogOptions{}
	}
	files, err := openLog(path)
	if err != nil {
		return fmt.Errorf("read log: %w", err)
	}
	r := &reader{path: path, files: files, running: running, followed: opts.Follow, out: newOutput(opts, stdout, stderr)}
	defer func() { closeAll(r.files) }()
	if opts.TailLines != nil && *opts.TailLines >= 0 {
		if r.files, err = seekTail(r.files, *opts.TailLines); err != nil {
			return fmt.Errorf("read log %s: %w", path, err)
		}
	}
	if opts.Follow {
		err = r.follow(ctx)
	} else {
		err = r.drain(ctx)
	}
	if err = errors.Join(err, r.out.flush()); err != nil && !errors.Is(err, errLimit) {
		return fmt.Errorf("read log %s: %w", path, err)
	}
	return nil
}

// reader walks through the files of one log, oldest first.
type reader struct {
	path    string
	files   []*os.File // the first is the one being read
	buf     *bufio.Reader
	carry   []byte // begin of a record whose end is not written yet
	running func() bool
	out     *output

	followed bool
}

func (r *reader) follow(ctx context.Context) error {
	watch, err := newWatch(filepath.Dir(r.path),
		unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_CREATE|unix.IN_MOVED_FROM|unix.IN_MOVED_TO|unix.IN_DELETE|unix.IN_DELETE_SELF)
	if err != nil {
		return err
	}
	defer watch.close()
	for {
		over := r.over() // before the last look at the files
		if err := r.drain(ctx); err != nil {
			return err
		}
		if err := r.out.flush(); err != nil || over {
			return err
		}
		if err := watch.wait(ctx, safetyNet); err != nil {
			return err
		}
	}
}

// over says that nothing will be added to the log any more.
func (r *reader) over() bool {
	info, err := os.Stat(r.path)
	if err == nil && info.Mode().Perm() == logstream.CompleteMode {
		return true
	}
	return r.running == nil || !r.running()
}

// drain delivers everything that is in the files now.
func (r *reader) drain(ctx context.Context) error {
	for {
		if err := r.drainFile(ctx); err != nil {
			return err
		}
		more, err := r.advance(ctx)
		if err != nil || !more {
			return err
		}
	}
}

// advance goes to the next file; more is false when there is none.
func (r *reader) advance(ctx context.Context) (more bool, err error) {
	if len(r.files) > 1 {
		// openLog was some time ago: what came before the rotation is still to be read
		_ = r.files[0].Close()
		r.files, r.buf, r.carry = r.files[1:], nil, nil
		return true, nil
	}
	if !r.followed {
		return false, nil // what is there now; a container that floods must not keep us here
	}
	next, err := nextFile(r.path, r.files[0])
	if err != nil || next == nil {
		return false, err
	}
	r.files = append(r.files, next)
	return true, r.drainFile(ctx) // what was added between our last look and the rotation
}

func (r *reader) drainFile(ctx context.Context) error {
	if r.buf == nil {
		r.buf = bufio.NewReaderSize(r.files[0], 128<<10)
	}
	for n := 0; ; n++ {
		if n%1024 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line, err := r.buf.ReadSlice('\n')
		if err != nil || len(r.carry) > 0 {
			r.carry = append(r.carry, line...)
			line = r.carry
		}
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := r.out.record(line[:len(line)-1]); err != nil {
			return err
		}
		r.carry = r.carry[:0]
	}
}
