package logwriter

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// rotatedFormat extends the kubelet's (20060102-150405): names sort by time, and a
// container may fill more than one file in a second.
const rotatedFormat = "20060102-150405.000000"

// logFile is the log that is being appended to.
type logFile struct {
	path     string
	file     *os.File
	size     int64
	maxSize  int64
	maxFiles int
}

func openLogFile(s logstream.Stream) (*logFile, error) {
	l := &logFile{path: s.LogFile}
	l.maxSize, l.maxFiles = s.Limits()
	if err := os.MkdirAll(filepath.Dir(l.path), 0o755); err != nil {
		return nil, err
	}
	return l, l.open()
}

func (l *logFile) open() error {
	file, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW, logstream.LogMode)
	if err != nil {
		return err
	}
	info, err := file.Stat()
	if err == nil && info.Mode().Perm() != logstream.LogMode {
		err = file.Chmod(logstream.LogMode)
	}
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.close()
	l.file, l.size = file, info.Size()
	return nil
}

// append writes all of data or, on an error, nothing: records are never cut.
func (l *logFile) append(data []byte) error {
	n, err := l.file.Write(data)
	if err != nil {
		return errors.Join(err, l.cut(n))
	}
	l.size += int64(n)
	return nil
}

func (l *logFile) cut(written int) error {
	if written <= 0 {
		return nil
	}
	return l.file.Truncate(l.size)
}

// rotate puts the file aside when it is full and starts a new one. If that fails the
// old one goes on.
func (l *logFile) rotate(now time.Time) error {
	if l.size < l.maxSize {
		return nil
	}
	err := os.Rename(l.path, l.path+"."+now.UTC().Format(rotatedFormat))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := l.open(); err != nil {
		return err
	}
	return l.prune()
}

// prune removes the oldest rotated files beyond maxFiles, compressed ones as well.
func (l *logFile) prune() error {
	entries, err := os.ReadDir(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	var rotated []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), filepath.Base(l.path)+".") {
			rotated = append(rotated, filepath.Join(filepath.Dir(l.path), entry.Name()))
		}
	}
	slices.Sort(rotated)
	for len(rotated) > l.maxFiles-1 {
		err = errors.Join(err, os.Remove(rotated[0]))
		rotated = rotated[1:]
	}
	return err
}

// complete tells readers that nothing will be added.
func (l *logFile) complete() error { return l.file.Chmod(logstream.CompleteMode) }

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close()
	}
}
