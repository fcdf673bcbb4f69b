package logwriter

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func TestAppendRecords(t *testing.T) {
	long := strings.Repeat("x", MaxLine)
	tests := []struct{ name, src, want, rest string }{
		{"line", "a\n", "F a\n", ""},
		{"empty lines", "\n\n", "F \nF \n", ""},
		{"carriage returns stay", "a\r\nb\r", "F a\r\n", "b\r"},
		{"binary", "\x00\xff\n", "F \x00\xff\n", ""},
		{"unfinished", "a", "", "a"},
		{"exactly the limit", long + "\n", "F " + long + "\n", ""},
		{"exactly the limit, unfinished", long, "", long},
		{"over the limit", long + "y\n", "P " + long + "\nF y\n", ""},
		{"over the limit, unfinished", long + "y", "P " + long + "\n", "y"},
	}
	stamp := time.Unix(0, 5).UTC()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, n := appendRecords(nil, []byte(test.src), newPrefixes(stamp, "stdout"), false, 1<<20)
			got := strings.ReplaceAll(string(out), "1970-01-01T00:00:00.000000005Z stdout ", "")
			if got != test.want || test.src[n:] != test.rest {
				t.Errorf("got %q and %q left, want %q and %q", got, test.src[n:], test.want, test.rest)
			}
		})
	}
}

// TestRecordsDoNotDependOnBatches cuts one input in all kinds of ways, and makes each
// batch's records again as a restarted writer does.
func TestRecordsDoNotDependOnBatches(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	p := newPrefixes(time.Unix(0, 0), "stderr")
	for range 200 {
		var src []byte
		for range rng.IntN(8) {
			src = append(src, bytes.Repeat([]byte{'a'}, []int{0, 1, 50, MaxLine - 1, MaxLine, MaxLine + 1, 3 * MaxLine}[rng.IntN(7)])...)
			if rng.IntN(3) > 0 {
				src = append(src, '\n')
			}
		}
		want := remakeRecords(src, p)
		var got []byte
		for pos, end := 0, 0; pos < len(src); {
			end = min(len(src), end+1+rng.IntN(2*MaxLine))
			batch, n := appendRecords(nil, src[pos:end], p, end == len(src), 1+rng.IntN(3*MaxLine))
			if again := remakeRecords(src[pos:pos+n], p); !bytes.Equal(again, batch) {
				t.Fatal("records made again differ")
			}
			got = append(got, batch...)
			pos += n
		}
		if !bytes.Equal(got, want) {
			t.Fatal("records depend on how the input was cut")
		}
	}
}
