package staticpods

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options say where manifests are and who wants to know.
type Options struct {
	// Dir is made if it is not there; empty means that there are no static pods.
	Dir  string
	Node string
	// Changed gets the set at the start and after each change; Invalid each mistake, once
	// for as long as it stays.
	Changed func(Set)
	Invalid func(error)
	Log     *slog.Logger
}

// quiet is how long a directory has to be still: editors write in several steps.
const quiet = 100 * time.Millisecond

// Run reads the directory and follows it until ctx ends.
func Run(ctx context.Context, o Options) error {
	if o.Dir == "" {
		o.Changed(Set{Complete: true})
		<-ctx.Done()
		return nil
	}
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch static pods: %w", err)
	}
	defer watcher.Close()
	r, told := &reader{dir: o.Dir, node: o.Node, good: map[string]entry{}}, map[string]bool{}
	for {
		if err := follow(watcher, o.Dir); err != nil {
			return err
		}
		set, errs := r.read(time.Now())
		o.Changed(set)
		told = tell(o, errs, told)
		if !await(ctx, watcher, o.Log) {
			return nil
		}
	}
}

// follow makes the directory, again if somebody removed it, and watches it.
func follow(watcher *fsnotify.Watcher, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of static pods: %w", err)
	}
	if err := watcher.Add(dir); err != nil {
		return fmt.Errorf("watch static pods: %w", err)
	}
	return nil
}

// tell reports the mistakes that were not there before, and returns those that are.
func tell(o Options, errs []error, before map[string]bool) map[string]bool {
	now := map[string]bool{}
	for _, err := range errs {
		now[err.Error()] = true
		if !before[err.Error()] {
			o.Invalid(err)
		}
	}
	return now
}

// await returns after a change and a moment of quiet; false when ctx has ended.
func await(ctx context.Context, watcher *fsnotify.Watcher, log *slog.Logger) bool {
	var still <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-watcher.Events:
			still = time.After(quiet)
		case err := <-watcher.Errors:
			log.Warn("Cannot follow the directory of static pods", "err", err)
			still = time.After(quiet) // events may be lost: it is read as a whole
		case <-still:
			return true
		}
	}
}
