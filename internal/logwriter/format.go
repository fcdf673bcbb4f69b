package logwriter

import (
	"bytes"
	"math"
	"time"
)

// MaxLine is how many bytes of a line go into one CRI record; containerd's limit.
const MaxLine = 16 << 10

// stampFormat is RFC 3339 with all nine digits: records of one batch have one length.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// prefixes are what a record begins with when it ends a line and when it does not.
type prefixes struct{ full, part []byte }

func newPrefixes(stamp time.Time, stream string) prefixes {
	head := stamp.UTC().AppendFormat(nil, stampFormat)
	head = append(append(head, ' '), stream...)
	return prefixes{
		full: append(bytes.Clone(head), " F "...),
		part: append(bytes.Clone(head), " P "...),
	}
}

// appendRecords appends src as CRI records to dst until dst has maxOut bytes and
// returns how much of src they cover. A line's end that is not there yet is left in
// src, unless last says that nothing more will follow. How src was cut into calls
// has no influence on the records.
func appendRecords(dst, src []byte, p prefixes, last bool, maxOut int) (out []byte, consumed int) {
	for consumed < len(src) && len(dst) < maxOut {
		rest := src[consumed:]
		content, prefix, skip := rest, p.part, 0
		if end := bytes.IndexByte(rest[:min(len(rest), MaxLine+1)], '\n'); end >= 0 {
			content, prefix, skip = rest[:end], p.full, 1
		} else if len(rest) > MaxLine {
			content = rest[:MaxLine]
		} else if !last {
			break
		}
		dst = append(dst, prefix...)
		dst = append(dst, content...)
		dst = append(dst, '\n')
		consumed += len(content) + skip
	}
	return dst, consumed
}

// remakeRecords makes the records again that appendRecords made of exactly src.
func remakeRecords(src []byte, p prefixes) []byte {
	out, _ := appendRecords(nil, src, p, true, math.MaxInt)
	return out
}
