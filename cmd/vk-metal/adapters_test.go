package main

import (
	"io"
	"strings"
	"testing"
)

// TestOutputOfProbesIsBounded: a probe that writes without end does not end in our memory
// (CVE-2022-1708), and is not held up by that.
func TestOutputOfProbesIsBounded(t *testing.T) {
	out := &boundedBuffer{max: 10}
	n, err := io.Copy(out, io.LimitReader(strings.NewReader(strings.Repeat("0123456", 1<<20)), 5<<20))
	if n != 5<<20 || err != nil || out.buf.String() != "0123456012" {
		t.Errorf("%d bytes, %v, kept %q", n, err, out.buf.String())
	}
}
