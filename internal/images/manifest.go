package images

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

type manifestKind int

const (
	kindManifest manifestKind = iota
	kindIndex
)

// kindOf decides by the content's own mediaType, then by the server's, then by its shape. A
// document that could be read as both is refused (CVE-2021-41190).
func kindOf(served string, data []byte) (manifestKind, error) {
	var doc struct {
		SchemaVersion int             `json:"schemaVersion"`
		MediaType     string          `json:"mediaType"`
		Config        json.RawMessage `json:"config"`
		Layers        json.RawMessage `json:"layers"`
		Manifests     json.RawMessage `json:"manifests"`
	}
	if err := json.Unmarshal(data, &doc); err != nil {
		return 0, err
	}
	if doc.SchemaVersion == 1 {
		return 0, errors.New("Docker schema 1 images are not supported") //nolint:staticcheck // a name
	}
	isManifest, isIndex := doc.Config != nil || doc.Layers != nil, doc.Manifests != nil
	if isManifest == isIndex {
		return 0, errors.New("neither an image manifest nor an image index")
	}
	mediaType := doc.MediaType
	setDefault(&mediaType, served)
	switch mediaType {
	case ocispec.MediaTypeImageManifest, dockerManifest:
		if isIndex {
			return 0, fmt.Errorf("an image index that says it is %s", mediaType)
		}
	case ocispec.MediaTypeImageIndex, dockerManifestList:
		if isManifest {
			return 0, fmt.Errorf("an image manifest that says it is %s", mediaType)
		}
	}
	if isIndex {
		return kindIndex, nil
	}
	return kindManifest, nil
}

// choose picks the manifest for the platform: same OS and architecture, the wanted variant
// before none, none before another.
func choose(manifests []ocispec.Descriptor, want ocispec.Platform) (ocispec.Descriptor, error) {
	best, bestScore := -1, 0
	var offered []string
	for i, d := range manifests {
		if d.Platform == nil {
			if len(manifests) == 1 {
				return d, nil
			}
			continue
		}
		offered = append(offered, platformString(*d.Platform))
		if d.Platform.OS != want.OS || d.Platform.Architecture != want.Architecture {
			continue
		}
		score := 1
		switch d.Platform.Variant {
		case want.Variant:
			score = 3
		case "":
			score = 2
		}
		if score > bestScore {
			best, bestScore = i, score
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, fmt.Errorf("no match for platform in manifest: want %s, have %s", platformString(want), strings.Join(offered, ", "))
	}
	return manifests[best], nil
}

func platformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// layer is one layer of an image: where its blob comes from and where it is unpacked.
type layer struct {
	blob   ocispec.Descriptor
	diffID digest.Digest
	key    string // name below layers/
}

// layersOf pairs the manifest's blobs with the config's diff IDs, bottom first.
func (m *Manager) layersOf(manifest ocispec.Manifest, config ocispec.Image) ([]layer, error) {
	if len(manifest.Layers) != len(config.RootFS.DiffIDs) {
		return nil, fmt.Errorf("image has %d layers but its config names %d", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	if n := len(manifest.Layers); n > m.opts.Limits.ImageLayers {
		return nil, fmt.Errorf("image has %d layers, the limit is %d", n, m.opts.Limits.ImageLayers)
	}
	layers := make([]layer, len(manifest.Layers))
	var chain digest.Digest
	for i, blob := range manifest.Layers {
		diffID := config.RootFS.DiffIDs[i]
		if err := errors.Join(blob.Digest.Validate(), diffID.Validate()); err != nil {
			return nil, fmt.Errorf("read layer %d: %w", i, err)
		}
		if blob.Size < 0 || blob.Size > m.opts.Limits.BlobBytes {
			return nil, fmt.Errorf("layer %s is %d bytes, the limit is %d", blob.Digest, blob.Size, m.opts.Limits.BlobBytes)
		}
		chain = chainID(chain, diffID)
		layers[i] = layer{blob: blob, diffID: diffID, key: layerKey(chain)}
	}
	return layers, nil
}

// chainID is the OCI chain ID: what identifies a layer together with all below it.
func chainID(parent, diffID digest.Digest) digest.Digest {
	if parent == "" {
		return diffID
	}
	return digest.FromString(parent.String() + " " + diffID.String())
}

// layerKey is 130 bits of the chain ID's hash, in 26 characters: the kernel takes one page for
// all lower directories of an overlay, so their names are short.
func layerKey(chain digest.Digest) string {
	sum := sha256.Sum256([]byte(chain.String()))
	return strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:]))[:26]
}

func (m *Manager) hasLayer(key string) bool {
	_, err := os.Lstat(m.path("layers", key))
	return err == nil
}

// configOf takes over what a container needs.
func configOf(c ocispec.Image) Config {
	return Config{
		Entrypoint: c.Config.Entrypoint, Cmd: c.Config.Cmd, Env: c.Config.Env,
		User: c.Config.User, WorkingDir: c.Config.WorkingDir, StopSignal: c.Config.StopSignal,
		Volumes:      slices.Sorted(maps.Keys(c.Config.Volumes)),
		ExposedPorts: slices.Sorted(maps.Keys(c.Config.ExposedPorts)),
	}
}
