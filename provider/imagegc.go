package provider

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// ImagesInUse lists the images (digests) that may not be removed: those of units, whether
// or not their processes live, of containers that wait for their next start, and those
// that were fetched for a start that has not come to pass. It answers for the time while no
// start is held (images.Store.HoldStart), and not before the pods are known.
func (p *Provider) ImagesInUse(ctx context.Context) ([]string, error) {
	select {
	case <-p.ready:
	default:
		return nil, errors.New("the pods are not known yet")
	}
	units, err := p.deps.Runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	var used []string
	for _, u := range units {
		used = append(used, u.Identity.Image)
	}
	for _, w := range p.all() {
		used = append(used, w.images()...)
	}
	return used, nil
}

// images are the ones that this pod's containers last ran from or will start from.
func (w *worker) images() []string {
	pod := w.view0()
	if isFinal(pod.Status.Phase) {
		return nil
	}
	var used []string
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for _, status := range list {
			used = append(used, status.ImageID)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, list := range w.visible {
		for _, a := range list {
			if !a.over() {
				used = append(used, a.images...)
			}
		}
	}
	for key, o := range w.ops {
		if image, ok := o.value.(images.Image); ok && o.done && strings.HasPrefix(key, imageOps) {
			used = append(used, image.Digest)
		}
	}
	return used
}

const imageOps = "image/"

func imageOp(container string, attempt int) string {
	return fmt.Sprintf("%s%s/%d", imageOps, container, attempt)
}

// holdImages is holdImage, for the images that the container has as volumes, too.
func (w *worker) holdImages(ctx context.Context, pod *corev1.Pod, c podplan.Container, st podplan.Start, cin podplan.ContainerInputs) (release func(), present bool, err error) {
	release, present, err = w.holdImage(ctx, c, st, cin.Image)
	if err != nil || !present {
		return nil, false, err
	}
	present, err = w.volumesPresent(ctx, pod, cin.VolumeImages)
	if err != nil || !present {
		release()
		return nil, false, err
	}
	return release, true, nil
}

// holdImage keeps the image of the start from being removed until release, from when on
// the unit names it. present is false when it has been removed since it was fetched: it is
// fetched again, and the start comes later.
func (w *worker) holdImage(ctx context.Context, c podplan.Container, st podplan.Start, image podplan.Image) (release func(), present bool, err error) {
	release, err = w.p.deps.Images.HoldStart()
	if err != nil {
		return nil, false, fmt.Errorf("hold image of container %s: %w", c.Name, err)
	}
	if image.Host {
		return release, true, nil
	}
	_, present, err = w.p.deps.Images.Get(ctx, image.Digest)
	if err == nil && present {
		return release, true, nil
	}
	release()
	if err != nil {
		return nil, false, fmt.Errorf("look for image of container %s: %w", c.Name, err)
	}
	w.forget(imageOp(c.Name, st.Attempt))
	w.wakeUp()
	return nil, false, nil
}
