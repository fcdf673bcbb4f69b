package bench

import (
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	line := "42 (a (b) c) S 7 42 42 0 -1 4194560 1 2 3 4 11 12 13 14 20 0 1 0 5 6 7"
	got, err := parseStat(line)
	want := process{pid: 42, parent: 7, threads: 1, name: "a (b) c", own: 230 * time.Millisecond, children: 270 * time.Millisecond}
	if err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	for _, bad := range []string{"", "42 a S 7", "42 (a) S 7 42", "x (a) S 7 42 42 0 -1 4194560 1 2 3 4 11 12 13 14"} {
		if _, err := parseStat(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestUsageNow(t *testing.T) {
	u, err := usageNow(-1, map[int]string{os.Getpid(): "this"})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := u["this"]; !ok || len(u) != 2 || u[elsewhere] <= 0 {
		t.Errorf("got %v, want this process and the rest", u)
	}
}

func TestUsageSince(t *testing.T) {
	before := usage{"a": time.Second, "b": time.Second}
	now := usage{"a": 2 * time.Second, "b": 3 * time.Second, "c": time.Millisecond}
	if got, want := now.since(before, 10), "300.0 ms (b 200.0, a 100.0)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}
