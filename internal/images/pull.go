package images

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// parallelBlobs is how many layers of one image are downloaded at once, as containerd does.
const parallelBlobs = 3

// maxIndexDepth bounds indexes that point to indexes.
const maxIndexDepth = 4

// puller is one pull: one reference, one credential, the hosts that may answer.
type puller struct {
	m     *Manager
	ref   imageRef
	cred  credential
	hosts []*host
	errs  []error // of hosts that could not be opened
}

// pull makes the image present with the first credential that works.
func (m *Manager) pull(ctx context.Context, ref imageRef, creds []credential) (Record, error) {
	if len(creds) == 0 {
		creds = []credential{{}}
	}
	var errs []error
	for _, cred := range creds {
		r, err := m.pullWith(ctx, ref, cred)
		if err == nil {
			return r, nil
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return Record{}, fmt.Errorf("failed to pull image %q: %w", ref.canonical(), errors.Join(errs...))
}

func (m *Manager) pullWith(ctx context.Context, ref imageRef, cred credential) (Record, error) {
	eps, err := endpoints(m.opts.HostsDir, ref.registry())
	if err != nil {
		return Record{}, err
	}
	p := &puller{m: m, ref: ref, cred: cred}
	defer p.close()
	for _, ep := range eps {
		h, err := m.openHost(ctx, ep, ref, cred)
		if err != nil {
			p.errs = append(p.errs, fmt.Errorf("%s: %w", ep, err))
			continue
		}
		p.hosts = append(p.hosts, h)
	}
	return p.run(ctx)
}

func (p *puller) close() {
	for _, h := range p.hosts {
		h.close()
	}
}

// run resolves, fetches, unpacks and records.
func (p *puller) run(ctx context.Context) (Record, error) {
	top, data, known, err := p.resolve(ctx)
	if err != nil {
		return Record{}, fmt.Errorf("resolve: %w", err)
	}
	access := map[string]Access{p.ref.repo(): {Anyone: true}}
	if p.cred.hash != "" {
		access[p.ref.repo()] = Access{Credentials: p.cred.names()}
	}
	if known != nil {
		known.Access = access
		known.addName(p.ref, top.Digest)
		return p.m.index.put(*known)
	}
	manifest, err := p.manifestFor(ctx, top, data, 0)
	if err != nil {
		return Record{}, err
	}
	rawConfig, err := p.config(ctx, manifest.Config)
	if err != nil {
		return Record{}, err
	}
	img := newImage{manifest: manifest, rawConfig: rawConfig, fetch: p.fetchBlob}
	r, err := p.m.install(ctx, img, func(r *Record) {
		r.Access = access
		r.addName(p.ref, top.Digest)
	})
	return r, err
}

func (r *Record) addName(ref imageRef, d digest.Digest) {
	if ref.tag != "" {
		r.Tags = union(r.Tags, []string{ref.canonical()})
	}
	r.Digests = union(r.Digests, []string{ref.byDigest(d)})
}

// each asks the hosts in order until one answers.
func (p *puller) each(ctx context.Context, can func(endpoint) bool, ask func(*host) error) error {
	errs := append([]error(nil), p.errs...)
	for _, h := range p.hosts {
		if !can(h.ep) {
			continue
		}
		err := ask(h)
		if err == nil {
			return nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", h.ep, err))
		if ctx.Err() != nil {
			break
		}
	}
	if len(errs) == 0 {
		return errors.New("no configured host may serve this")
	}
	return errors.Join(errs...)
}

// resolve turns the reference into a verified manifest or index. known is the image when its
// content is here already: then the registry has only confirmed the digest and the access.
func (p *puller) resolve(ctx context.Context) (top ocispec.Descriptor, data []byte, known *Record, err error) {
	can := func(e endpoint) bool { return e.resolve }
	name := p.ref.tag
	if p.ref.digest != "" {
		can, name = func(e endpoint) bool { return e.pull }, p.ref.digest.String()
	}
	err = p.each(ctx, can, func(h *host) error {
		d, err := h.resolve(ctx, name)
		if err == nil && d != "" {
			if p.ref.digest != "" {
				d = p.ref.digest
			}
			if r, ok, err := p.m.present(p.ref.byDigest(d)); err == nil && ok {
				top.Digest, known = d, &r
				return nil
			}
		}
		// HEAD may be refused where GET is not.
		top, data, err = h.manifest(ctx, name)
		return err
	})
	return top, data, known, err
}

// manifestFor follows indexes to the manifest for this platform.
func (p *puller) manifestFor(ctx context.Context, d ocispec.Descriptor, data []byte, depth int) (ocispec.Manifest, error) {
	kind, err := kindOf(d.MediaType, data)
	if err != nil {
		return ocispec.Manifest{}, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	if kind == kindManifest {
		var m ocispec.Manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return m, fmt.Errorf("read manifest %s: %w", d.Digest, err)
		}
		return m, nil
	}
	if depth >= maxIndexDepth {
		return ocispec.Manifest{}, fmt.Errorf("read image index %s: more than %d levels of indexes", d.Digest, maxIndexDepth)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return ocispec.Manifest{}, fmt.Errorf("read image index %s: %w", d.Digest, err)
	}
	next, err := choose(idx.Manifests, p.m.opts.Platform)
	if err != nil {
		return ocispec.Manifest{}, fmt.Errorf("read image index %s: %w", d.Digest, err)
	}
	sub, data, err := p.manifestByDigest(ctx, next.Digest)
	if err != nil {
		return ocispec.Manifest{}, err
	}
	return p.manifestFor(ctx, sub, data, depth+1)
}

func (p *puller) manifestByDigest(ctx context.Context, d digest.Digest) (desc ocispec.Descriptor, data []byte, err error) {
	if err := d.Validate(); err != nil {
		return desc, nil, fmt.Errorf("read manifest %q: %w", d, err)
	}
	err = p.each(ctx, func(e endpoint) bool { return e.pull }, func(h *host) (err error) {
		desc, data, err = h.manifest(ctx, d.String())
		return err
	})
	return desc, data, err
}

// config fetches and verifies the image configuration.
func (p *puller) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxManifestBytes {
		return nil, fmt.Errorf("read image config %s: %d bytes are more than the limit of %d", d.Digest, d.Size, maxManifestBytes)
	}
	path, err := p.fetchBlob(ctx, d)
	if err != nil {
		return nil, fmt.Errorf("read image config: %w", err)
	}
	defer os.Remove(path)
	return os.ReadFile(path)
}

// newImage is an image about to be stored; fetch puts a verified blob into a file.
type newImage struct {
	manifest  ocispec.Manifest
	rawConfig []byte
	fetch     func(context.Context, ocispec.Descriptor) (path string, err error)
}

// install unpacks the layers that are missing and writes the index record.
func (m *Manager) install(ctx context.Context, img newImage, name func(*Record)) (Record, error) {
	var config ocispec.Image
	if err := json.Unmarshal(img.rawConfig, &config); err != nil {
		return Record{}, fmt.Errorf("read image config %s: %w", img.manifest.Config.Digest, err)
	}
	layers, err := m.layersOf(img.manifest, config)
	if err != nil {
		return Record{}, err
	}
	unlock, err := flock(m.path("lock"), unix.LOCK_SH)
	if err != nil {
		return Record{}, err
	}
	defer unlock()
	if err := m.unpackAll(ctx, layers, img.fetch); err != nil {
		return Record{}, err
	}
	r := Record{ID: img.manifest.Config.Digest, Config: configOf(config), Pulled: time.Now(), Size: int64(len(img.rawConfig))}
	for _, l := range layers {
		r.Layers = append(r.Layers, l.key)
		r.Size += l.blob.Size
	}
	name(&r)
	return m.index.put(r)
}

// unpackAll downloads in parallel and unpacks bottom first: a layer may depend on those below.
func (m *Manager) unpackAll(ctx context.Context, layers []layer, fetch func(context.Context, ocispec.Descriptor) (string, error)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(parallelBlobs + 1)
	blobs := make([]chan string, len(layers))
	for i := range blobs {
		blobs[i] = make(chan string, 1)
	}
	group.Go(func() error { return m.unpackInOrder(ctx, layers, blobs) })
	for i, l := range layers {
		if m.hasLayer(l.key) {
			blobs[i] <- ""
			continue
		}
		group.Go(func() error {
			path, err := fetch(ctx, l.blob)
			if err != nil {
				return fmt.Errorf("fetch layer %s: %w", l.blob.Digest, err)
			}
			blobs[i] <- path
			return nil
		})
	}
	return group.Wait()
}

func (m *Manager) unpackInOrder(ctx context.Context, layers []layer, blobs []chan string) error {
	for i, l := range layers {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case path := <-blobs[i]:
			if path == "" {
				continue
			}
			err := m.unpackLayer(ctx, l, layers[:i], path)
			if strings.HasPrefix(path, m.path("ingest")+string(filepath.Separator)) {
				os.Remove(path)
			}
			if err != nil {
				return fmt.Errorf("unpack layer %s: %w", l.blob.Digest, err)
			}
		}
	}
	return nil
}
