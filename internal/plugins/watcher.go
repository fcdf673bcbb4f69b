package plugins

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

// Handler takes the plugins of one type. Calls for one plugin are made one at a time.
type Handler interface {
	// Validate says why a plugin cannot be taken.
	Validate(name, endpoint string, versions []string) error
	// Register takes a plugin; it may be called again for one that is there.
	Register(ctx context.Context, name, endpoint string, versions []string) error
	// Deregister drops a plugin whose socket has gone.
	Deregister(name, endpoint string)
}

// Options of a Watcher; Dir and Handlers are required.
type Options struct {
	// Dir is watched with all directories below it; made if it is missing.
	Dir string
	// Handlers by plugin type (CSIPlugin, DevicePlugin).
	Handlers map[string]Handler
	// Retry is the first delay after a registration that failed, doubled up to 128 times it;
	// default 500 ms.
	Retry time.Duration
	Log   *slog.Logger
}

// Watcher follows the sockets below a directory. It is a task.Task.
type Watcher struct {
	o     Options
	ready chan struct{}
	once  sync.Once
	group sync.WaitGroup
	open  func() (*fsnotify.Watcher, error)
	look  time.Duration

	sockets map[string]*registration // by path; Run only
}

// New makes a Watcher; nothing happens before Run.
func New(o Options) *Watcher {
	if o.Retry == 0 {
		o.Retry = 500 * time.Millisecond
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Watcher{o: o, ready: make(chan struct{}), open: fsnotify.NewWatcher, look: lookEvery, sockets: map[string]*registration{}}
}

// String implements task.Task.
func (w *Watcher) String() string { return "plugin-watcher" }

// Ready is closed once the directory is watched; plugins may still be asked then.
func (w *Watcher) Ready() <-chan struct{} { return w.ready }

// lookEvery is how often the directory is looked at where it cannot be watched: the processes of
// root's containers may have taken all inotify instances.
const lookEvery = 5 * time.Second

// Run implements task.Task.
func (w *Watcher) Run(ctx context.Context) error {
	if err := os.MkdirAll(w.o.Dir, 0o750); err != nil {
		return fmt.Errorf("watch plugins: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer w.group.Wait()
	defer cancel()
	for {
		err := w.watch(ctx)
		if ctx.Err() != nil {
			return nil
		}
		w.o.Log.Warn("cannot watch for plugins, will look for them", "every", w.look, "err", err)
		if err := w.rescan(ctx, nil); err != nil {
			return fmt.Errorf("look for plugins: %w", err)
		}
		w.once.Do(func() { close(w.ready) })
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(w.look):
		}
	}
}

// watch follows the directory until ctx ends, or that fails: events may have been lost then.
func (w *Watcher) watch(ctx context.Context) error {
	notify, err := w.open()
	if err != nil {
		return err
	}
	defer notify.Close()
	if err := w.rescan(ctx, notify); err != nil {
		return err
	}
	w.once.Do(func() { close(w.ready) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-notify.Events:
			w.handle(ctx, notify, event)
		case err := <-notify.Errors:
			return err
		}
	}
}

func (w *Watcher) handle(ctx context.Context, notify *fsnotify.Watcher, event fsnotify.Event) {
	switch {
	case event.Has(fsnotify.Create):
		w.drop(event.Name) // a socket in the place of another is another plugin
		if err := w.scan(ctx, notify, event.Name); err != nil {
			w.o.Log.Warn("cannot look at what may be a plugin", "path", event.Name, "err", err)
		}
	case event.Has(fsnotify.Remove), event.Has(fsnotify.Rename):
		w.drop(event.Name)
	}
}

// rescan drops sockets that have gone and takes up new ones.
func (w *Watcher) rescan(ctx context.Context, notify *fsnotify.Watcher) error {
	for path := range w.sockets {
		if _, err := os.Lstat(path); err != nil {
			w.drop(path)
		}
	}
	return w.scan(ctx, notify, w.o.Dir)
}

// scan watches every directory at or below path first and then takes up its sockets: one that
// appears in between is found either way. Without notify nothing is watched. Names that begin with a dot are not looked at.
func (w *Watcher) scan(ctx context.Context, notify *fsnotify.Watcher, path string) error {
	return filepath.WalkDir(path, func(at string, entry fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil // gone again
		case err != nil:
			return err
		case at != w.o.Dir && strings.HasPrefix(entry.Name(), "."):
			if entry.IsDir() {
				return fs.SkipDir
			}
		case entry.IsDir() && notify == nil:
		case entry.IsDir():
			if err := notify.Add(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		case entry.Type() == fs.ModeSocket:
			w.take(ctx, at)
		}
		return nil
	})
}

func (w *Watcher) take(ctx context.Context, path string) {
	if w.sockets[path] != nil {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &registration{o: &w.o, socket: path, cancel: cancel, done: make(chan struct{})}
	w.sockets[path] = r
	w.group.Go(func() { r.run(ctx) })
}

// drop ends a registration and waits for that: the next of its name comes after it.
func (w *Watcher) drop(path string) {
	r := w.sockets[path]
	if r == nil {
		return
	}
	delete(w.sockets, path)
	r.cancel()
	<-r.done
	if r.info != nil {
		w.o.Log.Info("plugin has gone", "type", r.info.Type, "name", r.info.Name, "socket", path)
		w.o.Handlers[r.info.Type].Deregister(r.info.Name, endpointOf(r.info, path))
	}
}

// endpointOf is where the plugin serves: the socket that it registered by, if it names none.
func endpointOf(info *registerapi.PluginInfo, socket string) string {
	if info.Endpoint == "" {
		return socket
	}
	return info.Endpoint
}
