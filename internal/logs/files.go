package logs

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// logFiles returns the rotated files of the log at path, oldest first, and path itself
// at the end. Rotated names sort by their time stamp.
func logFiles(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	var files []string
	prefix := filepath.Base(path) + "."
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, prefix) && !strings.HasSuffix(name, ".gz") && !strings.HasSuffix(name, ".tmp") {
			files = append(files, filepath.Join(filepath.Dir(path), name))
		}
	}
	slices.Sort(files)
	return append(files, path), nil
}

// openLog opens all files of a log in order. A rotation in between is noticed by
// comparing what was opened with a second listing.
func openLog(path string) ([]*os.File, error) {
	for range 10 {
		files, err := tryOpenLog(path)
		if err == nil || !errors.Is(err, errRotated) {
			return files, err
		}
	}
	return nil, errRotated // a container that rotates faster than we can list
}

var errRotated = errors.New("log was rotated again and again while it was opened")

func tryOpenLog(path string) (opened []*os.File, err error) {
	names, err := logFiles(path)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			closeAll(opened)
			opened = nil
		}
	}()
	for _, name := range names {
		file, err := os.Open(name)
		if errors.Is(err, os.ErrNotExist) && (name != path || len(opened) > 0) {
			continue // too old and removed, or between the two steps of a rotation
		}
		if err != nil {
			return opened, err
		}
		opened = append(opened, file)
	}
	if again, err := logFiles(path); err != nil || again[len(again)-1] != path ||
		newest(again) != newest(names) {
		return opened, errors.Join(errRotated, err)
	}
	return opened, nil
}

// newest is the name of the file that was rotated last; it changes with every rotation.
func newest(files []string) string {
	if len(files) < 2 {
		return ""
	}
	return files[len(files)-2]
}

// nextFile opens the file that follows current in the log at path, and nil when
// current is still the newest. When current is not there any more it is the oldest.
func nextFile(path string, current *os.File) (*os.File, error) {
	files, err := openLog(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // the log is being removed, or between the two steps of a rotation
	}
	if err != nil {
		return nil, err
	}
	want := 0
	for i, file := range files {
		if sameFile(file, current) {
			want = i + 1
		}
	}
	if want == len(files) {
		closeAll(files)
		return nil, nil
	}
	next := files[want]
	files[want] = nil
	closeAll(files)
	return next, nil
}

func sameFile(a, b *os.File) bool {
	x, err1 := a.Stat()
	y, err2 := b.Stat()
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

func closeAll(files []*os.File) {
	for _, file := range files {
		if file != nil {
			_ = file.Close()
		}
	}
}

const (
	scanBlock = 64 << 10
	// headSize is enough for the time, the stream and the tag of a record.
	headSize = 64
)

// seekTail puts files (oldest first) to where the last n lines begin and returns the
// ones from there on; the others are closed. A line of the container that was written
// in parts counts once.
func seekTail(files []*os.File, n int64) ([]*os.File, error) {
	last := len(files) - 1
	if n == 0 {
		closeAll(files[:last])
		_, err := files[last].Seek(0, io.SeekEnd)
		return files[last:], err
	}
	count := tailCount{need: n}
	for i := last; i >= 0; i-- {
		start, found, err := count.scan(files[i])
		if err != nil {
			return files, err
		}
		if found {
			_, err := files[i].Seek(start, io.SeekStart)
			closeAll(files[:i])
			return files[i:], err
		}
	}
	return files, nil
}

// tailCount counts lines from the end of a log.
type tailCount struct {
	need int64 // lines still wanted
	any  bool  // a record was seen
}

// scan walks back through file's records. found says that the wanted lines begin at start.
func (c *tailCount) scan(file *os.File) (start int64, found bool, err error) {
	size, err := file.Seek(0, io.SeekEnd)
	if err != nil {
		return 0, false, err
	}
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		return 0, false, err
	}
	next := size // where the record after the one looked at begins
	buf := make([]byte, scanBlock+headSize)
	for end := size; end > 0; {
		begin := max(0, end-scanBlock)
		n, err := file.ReadAt(buf[:min(end-begin+headSize, size-begin)], begin)
		if err != nil && !errors.Is(err, io.EOF) {
			return 0, false, err
		}
		block := buf[:n]
		for at := min(end, size-1) - begin; at >= 0; at-- {
			// a record begins at 0 and after every newline
			if begin+at != 0 && (at == 0 || block[at-1] != '\n') {
				continue
			}
			if c.full(block[at:]) {
				return next, true, nil
			}
			next = begin + at
		}
		if begin == 0 {
			break
		}
		end = begin // where a record may begin; looked at in the next block, which has the byte before
	}
	return 0, false, nil
}

// full counts the record that begins with head; it returns true when the record is
// the end of the last line that is not wanted.
func (c *tailCount) full(head []byte) bool {
	full := isFull(head)
	if !c.any {
		c.any = true
		if !full {
			c.need-- // the last line has no end yet
			return false
		}
	}
	if !full {
		return false
	}
	c.need--
	return c.need < 0
}
