package images

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/vk-metal/vk-metal/internal/keylock"
)

// Options configures a Manager. Only Root is required.
type Options struct {
	// Root is the store's directory (paths.Layout.Images()), made if it is missing. It must be on
	// a file system that overlayfs takes as a lower.
	Root string
	// HostsDir holds <registry>/hosts.toml files as containerd reads them; empty for none.
	HostsDir string
	// Providers are asked for logins besides those of pods; nil for none.
	Providers *CredentialProviders
	// Verify says which present images pods have to prove access to.
	Verify Verification
	// HostImages allows references to host images (docs/host-images.md).
	HostImages bool
	// HostRoots are further host images; their disk images are mounted below HostMounts, a
	// directory that is gone after a reboot (paths.Layout.HostRoots()).
	HostRoots  []HostRoot
	HostMounts string
	// Private are directories that no host image may hold or lie in.
	Private []string
	// MaxParallelPulls bounds pulls that run at once; default 4.
	MaxParallelPulls int
	// ProgressTimeout ends a download that got no byte for so long; default 5 minutes.
	ProgressTimeout time.Duration
	// BackOff and MaxBackOff bound the waiting after failed pulls; default 10 s and 5 minutes.
	BackOff, MaxBackOff time.Duration
	Limits              Limits
	// Pulled is told of each image that came from a registry: its size in bytes, and how long
	// it took; may be nil.
	Pulled func(size int64, took time.Duration)
	// Platform selects from a multi-arch index; default: the host's.
	Platform ocispec.Platform
	// UserAgent of requests to registries; default "vk-metal".
	UserAgent string
	Logger    *slog.Logger
}

// Limits bound what an image may cost; zero fields take the defaults.
type Limits struct {
	LayerBytes   int64 // unpacked size of one layer; default 64 GiB
	LayerEntries int64 // files, directories and links in one layer; default 4,000,000
	BlobBytes    int64 // compressed size of one layer; default 32 GiB
	ImageLayers  int   // default 127, as many as Docker's own limit
	// MinFreeBytes must stay free on the store's file system; default 256 MiB.
	MinFreeBytes int64
}

const (
	kib = 1 << 10
	mib = 1 << 20
	gib = 1 << 30

	// maxManifestBytes is containerd's limit for manifests; configs get the same.
	maxManifestBytes = 8 * mib

	maxPathBytes = 4 * kib
)

func (l Limits) withDefaults() Limits {
	setDefault(&l.LayerBytes, 64*gib)
	setDefault(&l.LayerEntries, 4_000_000)
	setDefault(&l.BlobBytes, 32*gib)
	setDefault(&l.ImageLayers, 127)
	setDefault(&l.MinFreeBytes, 256*mib)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (o Options) withDefaults() Options {
	o.Limits = o.Limits.withDefaults()
	setDefault(&o.MaxParallelPulls, 4)
	setDefault(&o.ProgressTimeout, 5*time.Minute)
	setDefault(&o.BackOff, 10*time.Second)
	setDefault(&o.MaxBackOff, 5*time.Minute)
	setDefault(&o.UserAgent, "vk-metal")
	if o.Platform.OS == "" {
		o.Platform = ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH, Variant: hostVariant()}
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	return o
}

// hostVariant is the variant that images for this architecture name most often.
func hostVariant() string {
	switch runtime.GOARCH {
	case "arm64":
		return "v8"
	case "arm":
		return "v7"
	}
	return ""
}

// Manager is the node's image store. It is safe for concurrent use, and several processes may
// share one Root.
type Manager struct {
	opts    Options
	log     *slog.Logger
	index   *index
	pulls   flights
	slots   *semaphore.Weighted
	chains  keylock.Mutex
	backoff *flowcontrol.Backoff
	lastErr messages
	disks   sync.Mutex // mounts of disk images
}

var _ Store = (*Manager)(nil)

// NewManager opens the store at opts.Root and removes what crashed pulls left behind.
func NewManager(opts Options) (*Manager, error) {
	if opts.Root == "" {
		return nil, errors.New("open image store: no root directory given")
	}
	opts = opts.withDefaults()
	for _, dir := range []string{"", "index", "layers", "ingest", "tmp"} {
		if err := os.MkdirAll(filepath.Join(opts.Root, dir), 0o700); err != nil {
			return nil, fmt.Errorf("open image store: %w", err)
		}
	}
	m := &Manager{
		opts:    opts,
		log:     opts.Logger,
		index:   newIndex(filepath.Join(opts.Root, "index"), filepath.Join(opts.Root, "index.lock"), opts.Logger),
		slots:   semaphore.NewWeighted(int64(opts.MaxParallelPulls)),
		backoff: flowcontrol.NewBackOff(opts.BackOff, opts.MaxBackOff),
	}
	if err := m.sweepTemp(); err != nil {
		return nil, fmt.Errorf("clean image store: %w", err)
	}
	return m, nil
}

func (m *Manager) path(elem ...string) string {
	return filepath.Join(append([]string{m.opts.Root}, elem...)...)
}

// sweepTemp removes the temporary directories that no process holds a lock on.
func (m *Manager) sweepTemp() error {
	entries, err := os.ReadDir(m.path("tmp"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, removeUnlocked(m.path("tmp", e.Name())))
	}
	return errors.Join(errs...)
}

// removeUnlocked removes a directory unless another process works in it.
func removeUnlocked(path string) error {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return nil
	}
	return os.RemoveAll(path)
}
