package diskuse

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func grow(t *testing.T, dir, name string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), make([]byte, 1<<16), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestMeterMeasuresOnceForAll: who asks again gets what is known, until that is too old for him.
func TestMeterMeasuresOnceForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		dir := t.TempDir()
		ask := func(age time.Duration, inodes int64) {
			t.Helper()
			got, err := m.Measure(t.Context(), dir, age)
			if err != nil || got.Inodes != inodes || time.Since(got.Time) >= max(age, time.Nanosecond) {
				t.Errorf("got %+v, %v, want %d inodes", got, err, inodes)
			}
		}
		ask(time.Minute, 1)
		grow(t, dir, "a")
		time.Sleep(30 * time.Second)
		ask(time.Minute, 1)
		ask(10*time.Second, 2) // for who wants it newer
		grow(t, dir, "b")
		time.Sleep(40 * time.Second)
		ask(time.Minute, 2)
		time.Sleep(20 * time.Second)
		ask(time.Minute, 3)
	})
}

// TestMeterIsBoundByCost: what takes long to measure is measured less often.
func TestMeterIsBoundByCost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		dir := t.TempDir()
		if _, err := m.Measure(t.Context(), dir, time.Second); err != nil {
			t.Fatal(err)
		}
		m.trees[dir].took = 2 * time.Second
		grow(t, dir, "a")
		time.Sleep(meterShare*2*time.Second - time.Nanosecond)
		if got, err := m.Measure(t.Context(), dir, time.Second); err != nil || got.Inodes != 1 {
			t.Errorf("got %+v, %v: it was measured again", got, err)
		}
		time.Sleep(time.Nanosecond)
		if got, err := m.Measure(t.Context(), dir, time.Second); err != nil || got.Inodes != 2 {
			t.Errorf("got %+v, %v", got, err)
		}
	})
}

// TestMeterBesideTheCaller: who asks for the newest does not wait, and has it the next time.
func TestMeterBesideTheCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var m Meter
		var dirs []string
		for i := range 3 * meterBeside {
			dir := filepath.Join(t.TempDir(), fmt.Sprint(i))
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			dirs = append(dirs, dir)
		}
		for _, dir := range dirs {
			if got, known := m.Newest(dir, time.Minute); known {
				t.Errorf("known at once: %+v", got)
			}
		}
		synctest.Wait()
		for _, dir := range dirs {
			if got, known := m.Newest(dir, time.Minute); !known || got.Inodes != 1 {
				t.Errorf("got %+v, %v", got, known)
			}
			grow(t, dir, "a")
		}
		time.Sleep(2 * time.Minute)
		for range 2 {
			if got, known := m.Newest(dirs[0], time.Minute); !known || got.Inodes < 1 {
				t.Errorf("old figures are not told: %+v, %v", got, known)
			}
		}
		synctest.Wait()
		if got, _ := m.Newest(dirs[0], time.Minute); got.Inodes != 2 {
			t.Errorf("got %+v", got)
		}
		time.Sleep(time.Hour)
		m.Newest("/nonexistent", time.Minute)
		synctest.Wait()
		if len(m.trees) != 1 || m.beside != 0 {
			t.Errorf("remembers %d trees, %d at work", len(m.trees), m.beside)
		}
	})
}

// TestMeterIsShared: who asks while somebody measures waits for that, as long as he may.
func TestMeterIsShared(t *testing.T) {
	var m Meter
	dir := t.TempDir()
	unlock := m.measuring.Lock(dir)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Measure(ctx, dir, time.Minute); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	var group sync.WaitGroup
	times := make([]time.Time, 8)
	for i := range times {
		group.Go(func() {
			got, err := m.Measure(t.Context(), dir, time.Hour)
			if err != nil {
				t.Error(err)
			}
			times[i] = got.Time
		})
	}
	unlock()
	group.Wait()
	for _, at := range times {
		if !at.Equal(times[0]) {
			t.Errorf("measured at %v", times)
			break
		}
	}
}
