package progress

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestStepShowsThatItIsAlive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		step := New(&out).Step("build %s", "kubernetes")
		step.Note("12 of 30 packages")
		time.Sleep(25 * time.Second)
		if err := step.Done(nil); err != nil {
			t.Fatal(err)
		}
		want := strings.Join([]string{
			"[   2.0s] build kubernetes … 2s, 12 of 30 packages",
			"[  10.0s] build kubernetes … 10s, 12 of 30 packages",
			"[  20.0s] build kubernetes … 20s, 12 of 30 packages",
			"[  25.0s] build kubernetes (25s)",
			"",
		}, "\n")
		if out.String() != want {
			t.Errorf("got:\n%swant:\n%s", out.String(), want)
		}
	})
}

func TestDoneReturnsItsError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		failure := errors.New("no space left")
		if err := New(&out).Step("unpack").Done(failure); !errors.Is(err, failure) {
			t.Errorf("Done returned %v", err)
		}
		if want := "[   0.0s] unpack: FAILED after 0s: no space left\n"; out.String() != want {
			t.Errorf("got %q, want %q", out.String(), want)
		}
	})
}
