package logs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
	"github.com/vk-metal/vk-metal/internal/paths"
)

// Stream says where one attempt's output goes; see logstream.Stream.
type Stream = logstream.Stream

// fifoMode lets a process of any user open its own /dev/stdout again, through
// /proc/self/fd; nobody but root can reach the FIFO by its path.
const fifoMode = 0o622

// ErrNoWriter says that vk-metal-log does not answer. Without it the output of a
// container that ends soon would be lost.
var ErrNoWriter = errors.New("the log writer has not opened the stream in time")

// writerTimeout bounds how long Create waits; a writer that runs takes well under 1 ms.
const writerTimeout = 5 * time.Second

// Create makes the attempt's log file and its stream directory and returns the FIFOs'
// paths for the launch spec once the log writer holds them. It is idempotent: an
// existing directory, with whatever its FIFOs hold, stays as it is. With ErrNoWriter
// the paths are returned as well; trying again is safe.
func Create(layout paths.Layout, s Stream) (stdoutFIFO, stderrFIFO string, err error) {
	if err := s.Validate(); err != nil {
		return "", "", fmt.Errorf("create log stream: %w", err)
	}
	dir := layout.LogStream(s.PodUID, s.Container, s.Attempt)
	stdoutFIFO = filepath.Join(dir, logstream.StdoutFIFO)
	stderrFIFO = filepath.Join(dir, logstream.StderrFIFO)
	if !exists(dir) {
		if err := createLogFile(s.LogFile); err != nil {
			return "", "", fmt.Errorf("create log file of container %s: %w", s.Container, err)
		}
		if err := createDir(layout, dir, s); err != nil {
			return "", "", fmt.Errorf("create log stream %s: %w", dir, err)
		}
	}
	if err := waitOpen(dir); err != nil {
		return stdoutFIFO, stderrFIFO, fmt.Errorf("create log stream %s: %w", dir, err)
	}
	return stdoutFIFO, stderrFIFO, nil
}

// waitOpen waits until the log writer holds the FIFOs of dir.
func waitOpen(dir string) error {
	mark := filepath.Join(dir, logstream.OpenMark)
	if exists(mark) {
		return nil
	}
	watch, err := newWatch(dir, unix.IN_CREATE|unix.IN_MOVE_SELF)
	if err != nil {
		return err
	}
	defer watch.close()
	ctx, cancel := context.WithTimeoutCause(context.Background(), writerTimeout, ErrNoWriter)
	defer cancel()
	for !exists(mark) {
		if err := watch.wait(ctx, 0); err != nil {
			return cmp.Or(context.Cause(ctx), err)
		}
		if !exists(dir) {
			return os.ErrNotExist
		}
	}
	return nil
}

func createLogFile(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, logstream.LogMode)
	if err != nil {
		return err
	}
	return file.Close()
}

func createDir(layout paths.Layout, dir string, s Stream) error {
	if err := os.MkdirAll(layout.LogStreams(), 0o700); err != nil {
		return err
	}
	if err := os.RemoveAll(endedMark(dir)); err != nil {
		return err
	}
	fresh := filepath.Join(layout.LogStreams(), logstream.NewPrefix+filepath.Base(dir))
	if err := os.RemoveAll(fresh); err != nil {
		return err
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return err
	}
	if err := logstream.Save(fresh, s); err != nil {
		return err
	}
	names := []string{logstream.StdoutFIFO, logstream.StderrFIFO}
	if s.Stdin && !s.TTY {
		names = append(names, logstream.StdinFIFO)
	}
	for _, name := range names {
		if err := makeFIFO(filepath.Join(fresh, name)); err != nil {
			return err
		}
	}
	return os.Rename(fresh, dir)
}

func makeFIFO(path string) error {
	if err := unix.Mkfifo(path, 0o600); err != nil {
		return &os.PathError{Op: "mkfifo", Path: path, Err: err}
	}
	return os.Chmod(path, fifoMode) // beyond the umask
}

func endedMark(dir string) string { return dir + logstream.EndedSuffix }

// Remove drops the attempt's stream directory and what its FIFOs still hold. It is
// idempotent. The log file stays.
func Remove(layout paths.Layout, uid, container string, attempt int) error {
	dir := layout.LogStream(uid, container, attempt)
	done := filepath.Join(layout.LogStreams(), logstream.DonePrefix+filepath.Base(dir))
	err := os.Rename(dir, done)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove log stream: %w", err)
	}
	if err := errors.Join(os.RemoveAll(done), os.RemoveAll(endedMark(dir))); err != nil {
		return fmt.Errorf("remove log stream %s: %w", dir, err)
	}
	return nil
}

// RemoveAll drops whatever is left of the streams of a pod that no process of lives: those of
// attempts, too, that an agent was making when it died. It is idempotent.
func RemoveAll(layout paths.Layout, uid string) error {
	entries, err := os.ReadDir(layout.LogStreams())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove log streams of pod %s: %w", uid, err)
	}
	var errs []error
	for _, e := range entries {
		name := strings.TrimPrefix(strings.TrimPrefix(e.Name(), logstream.NewPrefix), logstream.DonePrefix)
		if !strings.HasPrefix(name, uid+".") {
			continue
		}
		path := filepath.Join(layout.LogStreams(), e.Name())
		if e.Name() == name { // the writer has to let go of it as a whole
			gone := filepath.Join(layout.LogStreams(), logstream.DonePrefix+name)
			if err := os.Rename(path, gone); err == nil {
				path = gone
			}
		}
		errs = append(errs, os.RemoveAll(path))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove log streams of pod %s: %w", uid, err)
	}
	return nil
}

// WaitClosed tells the log writer that the attempt is over, whether or not it ever
// wrote, and waits until the attempt's log is complete: its stream directory is gone.
// Call it once no process of the attempt is left. It returns at once when the
// directory is not there, and ctx's error when ctx ends first (no log writer, a
// process that still holds the FIFO); the caller may then Remove the stream.
func WaitClosed(ctx context.Context, layout paths.Layout, uid, container string, attempt int) error {
	dir := layout.LogStream(uid, container, attempt)
	if !exists(dir) {
		return nil
	}
	watch, err := newWatch(layout.LogStreams(), unix.IN_MOVED_FROM|unix.IN_DELETE)
	if err != nil {
		return fmt.Errorf("wait for log of container %s: %w", container, err)
	}
	defer watch.close()
	if err := markEnded(dir); err != nil {
		return fmt.Errorf("wait for log of container %s: %w", container, err)
	}
	for exists(dir) {
		if err := watch.wait(ctx, 0); err != nil {
			return fmt.Errorf("wait for log of container %s: %w", container, err)
		}
	}
	return nil
}

// markEnded leaves the mark beside the directory. The writer takes it away together
// with the directory; a mark that came too late is taken back here.
func markEnded(dir string) error {
	file, err := os.OpenFile(endedMark(dir), os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if !exists(dir) {
		_ = os.Remove(endedMark(dir)) // a stale mark is harmless: Create removes it
	}
	return file.Close()
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
