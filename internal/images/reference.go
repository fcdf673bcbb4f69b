package images

import (
	"fmt"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
)

// imageRef is a parsed reference with Docker's defaults filled in.
type imageRef struct {
	asked  string // as the pod has it
	named  reference.Named
	tag    string        // empty with a digest
	digest digest.Digest // empty with a tag
}

// parseRef reads a reference as the kubelet and containerd do: docker.io and library/ are
// defaults, the tag is "latest", and a digest beats a tag.
func parseRef(ref string) (imageRef, error) {
	named, err := reference.ParseNormalizedNamed(ref)
	if err != nil {
		return imageRef{}, fmt.Errorf("couldn't parse image name %q: %w", ref, err)
	}
	r := imageRef{asked: ref, named: named}
	if d, ok := named.(reference.Digested); ok {
		r.digest = d.Digest()
		return r, nil
	}
	r.tag = reference.TagNameOnly(named).(reference.Tagged).Tag()
	return r, nil
}

// registry is the host part as it was written: docker.io, not its server.
func (r imageRef) registry() string { return reference.Domain(r.named) }

// repository is the path below the registry.
func (r imageRef) repository() string { return reference.Path(r.named) }

// repo is registry and repository: docker.io/library/busybox.
func (r imageRef) repo() string { return r.named.Name() }

// canonical is the full form: repo:tag or repo@digest.
func (r imageRef) canonical() string {
	if r.digest != "" {
		return r.byDigest(r.digest)
	}
	return r.repo() + ":" + r.tag
}

func (r imageRef) byDigest(d digest.Digest) string { return r.repo() + "@" + d.String() }
