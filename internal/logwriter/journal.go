package logwriter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/logs/logstream"
)

// JournalSocket is journald's native socket (systemd, JOURNAL_NATIVE_PROTOCOL).
const JournalSocket = "/run/systemd/journal/socket"

// The caps on the journal's copy, in lines: of one container and of the whole node.
const (
	streamRate, streamBurst = 100, 1000
	nodeRate, nodeBurst     = 1000, 5000
	journalRetry            = 5 * time.Second
)

// priorities are syslog's info for stdout and notice for stderr: many programs log
// everything to stderr, so it does not mean an error.
var priorities = [2]string{"6", "5"}

// journal sends copies of lines to journald: best effort, never waiting.
type journal struct {
	path   string // empty: none
	fd     int
	next   time.Time // when to try to connect again
	bucket bucket
}

func newJournal(path string) *journal {
	return &journal{path: path, fd: -1, bucket: bucket{rate: nodeRate, burst: nodeBurst}}
}

func (j *journal) connected(now time.Time) bool {
	if j.fd >= 0 || j.path == "" || now.Before(j.next) {
		return j.fd >= 0
	}
	j.next = now.Add(journalRetry)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: j.path}); err != nil {
		_ = unix.Close(fd)
		return false
	}
	j.fd = fd
	return true
}

// send says whether journald took the entry.
func (j *journal) send(entry []byte) bool {
	err := unix.Send(j.fd, entry, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	switch err {
	case nil:
		return true
	case unix.EAGAIN, unix.EMSGSIZE, unix.ENOBUFS, unix.EINTR:
	default:
		_ = unix.Close(j.fd)
		j.fd = -1
	}
	return false
}

// copier sends one stream's lines.
type copier struct {
	journal *journal
	fields  [2][]byte // per FIFO: everything but the message
	logFile string
	bucket  bucket
	left    int // lines not copied since the last one that was
	entry   []byte
}

func newCopier(j *journal, s logstream.Stream) *copier {
	c := &copier{journal: j, logFile: s.LogFile, bucket: bucket{rate: streamRate, burst: streamBurst}}
	for i := range c.fields {
		var f []byte
		f = appendField(f, "OBJECT_SYSTEMD_UNIT", s.Unit)
		f = appendField(f, "SYSLOG_IDENTIFIER", s.Container)
		f = appendField(f, "PRIORITY", priorities[i])
		f = appendField(f, "VK_METAL_STREAM", streamNames[i])
		f = appendField(f, "VK_METAL_POD_UID", s.PodUID)
		f = appendField(f, "VK_METAL_POD_NAMESPACE", s.PodNamespace)
		f = appendField(f, "VK_METAL_POD_NAME", s.PodName)
		f = appendField(f, "VK_METAL_CONTAINER", s.Container)
		c.fields[i] = appendField(f, "VK_METAL_ATTEMPT", strconv.Itoa(s.Attempt))
	}
	return c
}

// appendField uses the protocol's length form, which takes any bytes.
func appendField[T string | []byte](dst []byte, name string, value T) []byte {
	dst = append(append(dst, name...), '\n')
	dst = binary.LittleEndian.AppendUint64(dst, uint64(len(value)))
	return append(append(dst, value...), '\n')
}

// lines copies the lines of src, which came from FIFO i, as far as the caps allow.
func (c *copier) lines(src []byte, i int, now time.Time) {
	if c == nil || !c.journal.connected(now) {
		return
	}
	for len(src) > 0 {
		if !c.bucket.take(now) || !c.journal.bucket.take(now) {
			c.left += bytes.Count(src, []byte{'\n'})
			return
		}
		if c.left > 0 {
			c.send(i, fmt.Appendf(nil, "vk-metal: %d lines are not copied to the journal; all are in %s", c.left, c.logFile))
			c.left = 0
		}
		end := bytes.IndexByte(src[:min(len(src), MaxLine)], '\n')
		line, skip := src[:min(len(src), MaxLine)], 0
		if end >= 0 {
			line, skip = src[:end], 1
		}
		if !c.send(i, line) {
			c.left++
		}
		src = src[len(line)+skip:]
	}
}

func (c *copier) send(i int, message []byte) bool {
	if c.journal.fd < 0 {
		return false
	}
	c.entry = append(c.entry[:0], c.fields[i]...)
	c.entry = appendField(c.entry, "MESSAGE", message)
	return c.journal.send(c.entry)
}

// bucket is a token bucket; it starts full.
type bucket struct {
	rate, burst float64
	used        float64
	last        time.Time
}

func (b *bucket) take(now time.Time) bool {
	if passed := now.Sub(b.last).Seconds(); passed > 0 {
		b.used = max(0, b.used-passed*b.rate)
		b.last = now
	}
	if b.used+1 > b.burst {
		return false
	}
	b.used++
	return true
}
