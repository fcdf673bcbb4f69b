package logs

import (
	"bytes"
	"time"
)

// record is one line of a CRI log file: `<RFC 3339 time> stdout|stderr F|P <bytes>`.
// Its slices point into the line that was parsed.
type record struct {
	time    []byte
	stderr  bool
	partial bool
	content []byte // without the newline that ends the record
}

// parseRecord parses a line without its newline; ok is false when it is none. Tags may grow: only the first, up to
// a colon, counts (CRI: "P:tag2").
func parseRecord(line []byte) (r record, ok bool) {
	stamp, rest, ok1 := bytes.Cut(line, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tags, content, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !ok3 {
		return record{}, false
	}
	tag, _, _ := bytes.Cut(tags, []byte{':'})
	r = record{time: stamp, content: content, partial: string(tag) == "P"}
	switch string(stream) {
	case "stdout":
	case "stderr":
		r.stderr = true
	default:
		return record{}, false
	}
	return r, true
}

// before says whether the record is older than t.
func (r record) before(t time.Time) bool {
	at, err := time.Parse(time.RFC3339Nano, string(r.time))
	return err == nil && at.Before(t)
}

// isFull says whether a line that begins with head ends a line of the container's
// output. head may be cut off after the tag.
func isFull(head []byte) bool {
	for range 2 {
		_, rest, ok := bytes.Cut(head, []byte{' '})
		if !ok {
			return false
		}
		head = rest
	}
	return len(head) > 0 && head[0] == 'F'
}
