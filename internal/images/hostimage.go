package images

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// HostImage is the reference that runs the host's own root file system (docs/host-images.md).
// The registry name is reserved: nothing is ever pulled from it.
const HostImage = hostImageRegistry + "/host:latest"

const hostImageRegistry = "vk-metal.local"

// HostImagesKey is the setting of the node's configuration that allows host images.
const HostImagesKey = "hostImages.enabled"

func isHostImage(ref imageRef) bool { return ref.registry() == hostImageRegistry }

func hostRoot() Image {
	return Image{
		Ref: HostImage, Digest: HostImage, ID: HostImage, Host: true, HostPath: "/",
		Config: Config{Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}},
	}
}

// hostImage answers for every reference of the reserved registry, whatever the pull policy.
func (e *ensuring) hostImage() (Image, bool, error) {
	var err error
	switch {
	case !e.m.opts.HostImages:
		err = fmt.Errorf("host image %q is not allowed on this node: set %s to true in its configuration", e.req.Ref, HostImagesKey)
	case e.ref.canonical() != HostImage:
		err = fmt.Errorf("host image %q does not exist: only %s does", e.req.Ref, HostImage)
	}
	if err != nil {
		img, err := e.fail(eventFailed, reasonPullFailed, err)
		return img, true, err
	}
	e.event(corev1.EventTypeNormal, eventPulled, fmt.Sprintf("Container image %q already present on machine", e.req.Ref))
	img := hostRoot()
	img.Ref = e.req.Ref
	return img, true, nil
}
