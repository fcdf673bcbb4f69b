package wireguard

import (
	"crypto/sha256"
	"encoding/binary"
	"time"
)

// schedule says by the clock alone which slot all nodes send by, and when the idle one gets
// its new key: in the middle of an interval, so that neither clocks that differ nor a slow API
// server bring packets to a key that is being replaced.
type schedule struct {
	interval time.Duration // 0 never rotates
	share    float64       // 0 to 1: this node's place among the others
}

func newSchedule(interval time.Duration, node string) schedule {
	sum := sha256.Sum256([]byte(node))
	return schedule{interval: interval, share: float64(binary.BigEndian.Uint32(sum[:])) / (1 << 32)}
}

// phase is the number of the interval that now lies in, and how long ago it began.
func (s schedule) phase(now time.Time) (n int64, since time.Duration) {
	length := int64(s.interval)
	n, rest := now.UnixNano()/length, now.UnixNano()%length
	return n, time.Duration(rest)
}

// active is the slot to send by.
func (s schedule) active(now time.Time) int {
	if s.interval == 0 {
		return 0
	}
	n, _ := s.phase(now)
	return int(n % slots)
}

// rekeyAt is when in an interval the idle slot gets its key, rekeyEnd when it is too late.
func (s schedule) rekeyAt() time.Duration {
	return s.interval/4 + time.Duration(s.share*float64(s.interval/2))
}
func (s schedule) rekeyEnd() time.Duration { return s.interval - s.interval/8 }

// due says whether the idle slot's key, made at a time, is to be replaced now.
func (s schedule) due(now, made time.Time) bool {
	if s.interval == 0 {
		return false
	}
	_, since := s.phase(now)
	return since >= s.rekeyAt() && since < s.rekeyEnd() && made.Before(now.Add(s.rekeyAt()-since))
}

// next is how long nothing changes.
func (s schedule) next(now time.Time) time.Duration {
	if s.interval == 0 {
		return 0
	}
	_, since := s.phase(now)
	if since < s.rekeyAt() {
		return s.rekeyAt() - since
	}
	return s.interval - since
}
