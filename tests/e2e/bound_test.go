package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
)

const (
	// testTime bounds a test with its subtests and its cleanup.
	testTime = 5 * time.Minute
	// virtualTestTime is for tests on emulated processors.
	virtualTestTime = 40 * time.Minute
	// endTime is what a test whose context has ended gets to come to its end.
	endTime = 4 * time.Minute
)

// errTooLong is why the context of a test that hangs ends.
var errTooLong = errors.New("the test took too long")

// boundContext is the test's context that ends after limit, when the test fails and its
// folder gets the stacks of all goroutines; end must be called, last of the test's cleanups.
// A test that does not heed its context ends the program, but not before the cluster is down.
func boundContext(t testing.TB, limit time.Duration) (_ context.Context, end func()) {
	ctx, cancel := context.WithCancelCause(t.Context())
	over := make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		defer cancel(nil)
		if isOver(over, limit) {
			return
		}
		t.Errorf("not over after %s; stacks are in %s", limit, saveStacks(t.Name()))
		cancel(errTooLong)
		if !isOver(over, endTime) {
			abandon(t.Name())
		}
	})
	return ctx, func() {
		close(over)
		watch.Wait()
	}
}

// isOver waits for the end, at most for limit.
func isOver(over <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-over:
		return true
	case <-timer.C:
		return false
	}
}

// folder is where a failing test leaves what explains it.
func folder(test string) string { return filepath.Join(results, strings.ReplaceAll(test, "/", "_")) }

// saveStacks writes the stacks of all goroutines into the test's folder and says where.
func saveStacks(test string) string {
	stacks := make([]byte, 8<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	path := filepath.Join(folder(test), "goroutines.txt")
	if err := errors.Join(os.MkdirAll(folder(test), 0o755), os.WriteFile(path, stacks, 0o644)); err != nil {
		return err.Error()
	}
	return path
}

// abandon ends the program because of a test that nothing else ends.
func abandon(test string) {
	stacks := saveStacks(test)
	tearDown()
	panic(fmt.Sprintf("%s hangs, although its context has ended; stacks are in %s", test, stacks))
}

// timeOf is what a test gets by default.
func timeOf() time.Duration {
	if os.Getenv("VK_METAL_TEST_V2") != "" {
		return virtualTestTime
	}
	return testTime
}

// recorder is a test whose failures are noted, not had.
type recorder struct {
	testing.TB
	failures []string
}

// Errorf notes a failure.
func (r *recorder) Errorf(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// TestBound: a test that waits for what never comes has its context ended, fails, and
// leaves its stacks.
func TestBound(t *testing.T) {
	defer func(dir string) { results = dir }(results)
	results = t.TempDir()
	hangs := &recorder{TB: t}
	ctx, end := boundContext(hangs, time.Millisecond)
	<-ctx.Done()
	end()
	if !errors.Is(context.Cause(ctx), errTooLong) || len(hangs.failures) != 1 {
		t.Errorf("ended by %v with failures %q", context.Cause(ctx), hangs.failures)
	}
	stacks, err := os.ReadFile(filepath.Join(folder(t.Name()), "goroutines.txt"))
	if err != nil || !strings.Contains(string(stacks), "e2e.TestBound(") {
		t.Errorf("stacks are %.100q, %v", stacks, err)
	}
	good := &recorder{TB: t}
	ctx, end = boundContext(good, time.Hour)
	end()
	if ctx.Err() == nil || len(good.failures) != 0 {
		t.Errorf("a test that ends has failures %q, and its context goes on: %t", good.failures, ctx.Err() == nil)
	}
}
