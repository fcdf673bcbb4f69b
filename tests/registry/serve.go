package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"golang.org/x/sync/errgroup"
)

// ServeConfig says what to serve and where.
type ServeConfig struct {
	// Layouts are OCI layouts whose images are there from the start (see Images); a name
	// in several is the last one's.
	Layouts []string
	// Store is where blobs lie: on the layouts' file system they are linked, not copied.
	Store string
	// HTTP is the address of the open mirror: everybody may pull what is not private.
	HTTP string
	// HTTPS is the address of the registry that asks for tokens, as Docker Hub does:
	// anonymous ones for public images, a user's for private ones and for pushing.
	HTTPS     string
	Cert, Key string
	// Users are names and passwords.
	Users map[string]string
	Log   *slog.Logger
}

// Serve loads the layouts, serves until ctx ends and returns nil then.
func Serve(ctx context.Context, cfg ServeConfig) error {
	for _, dir := range cfg.Layouts {
		if err := linkBlobs(filepath.Join(dir, "blobs"), cfg.Store); err != nil {
			return fmt.Errorf("take over the images' blobs: %w", err)
		}
	}
	store := registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(cfg.Store)),
		registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithReferrersSupport(true),
	)
	for _, dir := range cfg.Layouts {
		if err := seed(ctx, store, dir); err != nil {
			return err
		}
	}
	open := &http.Server{Addr: cfg.HTTP, Handler: accessLog(cfg.Log, mirror(store)), ReadHeaderTimeout: time.Minute}
	closed := &http.Server{Addr: cfg.HTTPS, Handler: accessLog(cfg.Log, newTokens(cfg.Users, store)), ReadHeaderTimeout: time.Minute}
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return ended(open.ListenAndServe()) })
	group.Go(func() error { return ended(closed.ListenAndServeTLS(cfg.Cert, cfg.Key)) })
	group.Go(func() error {
		<-ctx.Done()
		return errors.Join(open.Close(), closed.Close())
	})
	return group.Wait()
}

func ended(err error) error {
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve images: %w", err)
}

// linkBlobs makes every blob of the layout one of the store's.
func linkBlobs(blobs, store string) error {
	return filepath.WalkDir(blobs, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(blobs, path)
		if err != nil {
			return err
		}
		target := filepath.Join(store, rel)
		if d.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		err = os.Link(path, target)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		if err != nil {
			return copyFile(path, target)
		}
		return nil
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = in.Close() }()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// seed pushes the layout's images into the store as any client would, over a socket
// that only this process knows: the store keeps manifests in memory.
func seed(ctx context.Context, store http.Handler, dir string) error {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("load the images: %w", err)
	}
	server := &http.Server{Handler: store, ReadHeaderTimeout: time.Minute}
	defer func() { _ = server.Close() }()
	go func() { _ = server.Serve(listener) }()
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return fmt.Errorf("load the images: %w", err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return fmt.Errorf("load the images: %w", err)
	}
	for _, descriptor := range manifest.Manifests {
		full := descriptor.Annotations[annotation]
		image, err := index.Image(descriptor.Digest)
		if err != nil {
			return fmt.Errorf("load %s: %w", full, err)
		}
		ref, err := mirrored(full, listener.Addr().String())
		if err != nil {
			return fmt.Errorf("load %s: %w", full, err)
		}
		if err := remote.Write(ref, image, remote.WithContext(ctx)); err != nil {
			return fmt.Errorf("load %s: %w", full, err)
		}
	}
	return nil
}

// mirrored is where a mirror at address has the image: same path, other host.
func mirrored(image, address string) (name.Reference, error) {
	ref, err := name.ParseReference(image)
	if err != nil {
		return nil, err
	}
	registry, err := name.NewRegistry(address, name.Insecure)
	if err != nil {
		return nil, err
	}
	return registry.Repo(ref.Context().RepositoryStr()).Tag(ref.Identifier()), nil
}

// accessLog writes one line per request, so that tests can tell who pulled what.
func accessLog(log *slog.Logger, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(recorder, r)
		log.Info("request", "method", r.Method, "path", r.URL.Path, "status", recorder.status, "from", r.RemoteAddr, "agent", r.UserAgent())
	})
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

// WriteHeader remembers the status.
func (s *statusRecorder) WriteHeader(status int) {
	s.status = status
	s.ResponseWriter.WriteHeader(status)
}
