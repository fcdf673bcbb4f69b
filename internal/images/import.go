package images

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Import stores the images of a docker-save or OCI-layout archive (plain, gzip or zstd) and
// returns their names. name is given to an image that has none of its own. Imported images may be
// used by every pod.
func (m *Manager) Import(ctx context.Context, archive io.Reader, name string) ([]string, error) {
	dir, err := os.MkdirTemp(m.path("tmp"), "import-")
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer os.RemoveAll(dir)
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("import image: lock %s: %w", dir, err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", err)
	}
	defer root.Close()
	if err := m.extract(ctx, root, archive); err != nil {
		return nil, fmt.Errorf("import image: read archive: %w", err)
	}
	im := &importer{m: m, root: root, dir: dir, name: name}
	names, err := im.run(ctx)
	if err != nil {
		return names, fmt.Errorf("import image: %w", err)
	}
	return names, nil
}

// extract writes the archive's files, links within it included, below root.
func (m *Manager) extract(ctx context.Context, root *os.Root, archive io.Reader) error {
	plain, err := decompress(bufio.NewReader(archive))
	if err != nil {
		return err
	}
	defer plain.Close()
	acc := &unpacker{limits: m.opts.Limits, free: m.checkFree}
	acc.limits.LayerBytes *= 4 // an archive holds several layers
	tr := tar.NewReader(plain)
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if err := acc.account(hdr); err != nil {
			return err
		}
		if err := extractEntry(root, hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
}

func extractEntry(root *os.Root, hdr *tar.Header, body io.Reader) error {
	name, err := cleanName(hdr.Name)
	if err != nil || name == "" {
		return err
	}
	if err := root.MkdirAll(path.Dir(name), 0o700); err != nil {
		return err
	}
	switch hdr.Typeflag {
	case tar.TypeDir:
		return root.MkdirAll(name, 0o700)
	case tar.TypeSymlink:
		return root.Symlink(hdr.Linkname, name)
	case tar.TypeLink:
		target, err := cleanName(hdr.Linkname)
		if err != nil {
			return err
		}
		return root.Link(target, name)
	case tar.TypeReg:
		f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := io.Copy(f, body); err != nil {
			return err
		}
		return f.Close()
	}
	return nil
}

// importer reads one extracted archive.
type importer struct {
	m    *Manager
	root *os.Root
	dir  string
	name string
}

func (im *importer) run(ctx context.Context) ([]string, error) {
	data, err := im.readJSON("manifest.json")
	if err == nil {
		return im.docker(ctx, data)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	data, err = im.readJSON("index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("neither manifest.json nor index.json in the archive")
	}
	if err != nil {
		return nil, err
	}
	return im.layout(ctx, data)
}

func (im *importer) readJSON(name string) ([]byte, error) {
	f, err := im.root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readLimited(f, maxManifestBytes)
}

// docker imports what `docker save` wrote.
func (im *importer) docker(ctx context.Context, data []byte) ([]string, error) {
	var list []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fmt.Errorf("read manifest.json: %w", err)
	}
	var names []string
	for _, item := range list {
		config, err := im.readJSON(item.Config)
		if err != nil {
			return names, fmt.Errorf("read image config: %w", err)
		}
		files := map[digest.Digest]string{}
		var manifest ocispec.Manifest
		manifest.Config.Digest = digest.FromBytes(config)
		for _, l := range item.Layers {
			d, err := im.describe(l)
			if err != nil {
				return names, fmt.Errorf("read layer %q: %w", l, err)
			}
			files[d.Digest] = l
			manifest.Layers = append(manifest.Layers, d)
		}
		img := newImage{manifest: manifest, rawConfig: config, fetch: func(_ context.Context, d ocispec.Descriptor) (string, error) {
			return im.hostPath(files[d.Digest])
		}}
		got, err := im.store(ctx, img, item.RepoTags, "")
		names = append(names, got...)
		if err != nil {
			return names, err
		}
	}
	return names, nil
}

// describe hashes one file of the archive.
func (im *importer) describe(name string) (ocispec.Descriptor, error) {
	f, err := im.root.Open(name)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	h := digest.Canonical.Digester()
	n, err := io.Copy(h.Hash(), f)
	return ocispec.Descriptor{Digest: h.Digest(), Size: n}, err
}

// hostPath resolves links inside the archive and returns the file's real path.
func (im *importer) hostPath(name string) (string, error) {
	f, err := im.root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// layout imports an OCI image layout.
func (im *importer) layout(ctx context.Context, data []byte) ([]string, error) {
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return nil, fmt.Errorf("read index.json: %w", err)
	}
	var names []string
	for _, d := range idx.Manifests {
		manifest, err := im.follow(d, 0)
		if err != nil {
			return names, err
		}
		config, err := im.blob(manifest.Config.Digest)
		if err != nil {
			return names, fmt.Errorf("read image config: %w", err)
		}
		img := newImage{manifest: manifest, rawConfig: config, fetch: im.verified}
		got, err := im.store(ctx, img, layoutNames(d), d.Digest)
		names = append(names, got...)
		if err != nil {
			return names, err
		}
	}
	return names, nil
}

// layoutNames are the names that containerd and others write beside a manifest.
func layoutNames(d ocispec.Descriptor) []string {
	for _, key := range []string{"io.containerd.image.name", ocispec.AnnotationRefName} {
		if n := d.Annotations[key]; strings.ContainsAny(n, "/:") {
			return []string{n}
		}
	}
	return nil
}

// follow goes from a descriptor to the manifest for this platform.
func (im *importer) follow(d ocispec.Descriptor, depth int) (m ocispec.Manifest, err error) {
	data, err := im.blob(d.Digest)
	if err != nil {
		return m, fmt.Errorf("read manifest: %w", err)
	}
	kind, err := kindOf(d.MediaType, data)
	if err != nil {
		return m, fmt.Errorf("read manifest %s: %w", d.Digest, err)
	}
	if kind == kindManifest {
		return m, json.Unmarshal(data, &m)
	}
	var idx ocispec.Index
	if err := json.Unmarshal(data, &idx); err != nil {
		return m, fmt.Errorf("read image index %s: %w", d.Digest, err)
	}
	next, err := choose(idx.Manifests, im.m.opts.Platform)
	if err == nil && depth >= maxIndexDepth {
		err = fmt.Errorf("more than %d levels of indexes", maxIndexDepth)
	}
	if err != nil {
		return m, fmt.Errorf("read image index %s: %w", d.Digest, err)
	}
	return im.follow(next, depth+1)
}

func blobName(d digest.Digest) (string, error) {
	if err := d.Validate(); err != nil {
		return "", err
	}
	return filepath.Join("blobs", d.Algorithm().String(), d.Encoded()), nil
}

// blob reads a small blob and verifies it.
func (im *importer) blob(d digest.Digest) ([]byte, error) {
	name, err := blobName(d)
	if err != nil {
		return nil, err
	}
	data, err := im.readJSON(name)
	if err == nil && d.Algorithm().FromBytes(data) != d {
		err = fmt.Errorf("verify blob %s: content has another digest", d)
	}
	return data, err
}

// verified is newImage.fetch for a layout.
func (im *importer) verified(_ context.Context, d ocispec.Descriptor) (string, error) {
	name, err := blobName(d.Digest)
	if err != nil {
		return "", err
	}
	f, err := im.root.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := verifyFile(f, d.Digest); err != nil {
		return "", err
	}
	return im.hostPath(name)
}

// store installs one image under its names.
func (im *importer) store(ctx context.Context, img newImage, tags []string, manifest digest.Digest) ([]string, error) {
	if len(tags) == 0 && im.name != "" {
		tags = []string{im.name}
	}
	var refs []imageRef
	for _, tag := range tags {
		ref, err := parseRef(tag)
		if err != nil {
			return nil, err
		}
		refs = append(refs, ref)
	}
	r, err := im.m.install(ctx, img, func(r *Record) {
		r.Access = map[string]Access{}
		for _, ref := range refs {
			r.Access[ref.repo()] = Access{Preloaded: true}
			if ref.tag != "" {
				r.Tags = union(r.Tags, []string{ref.canonical()})
			}
			if manifest != "" {
				r.Digests = union(r.Digests, []string{ref.byDigest(manifest)})
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if len(tags) == 0 {
		tags = []string{r.ID.String()}
	}
	return tags, nil
}
