package provider

import (
	"context"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// imageVolumes makes the images present that the container has as volumes (KEP-4639); what
// none of the pod's containers mounts is not pulled. wait is as with inputs.
func (w *worker) imageVolumes(pod *corev1.Pod, c podplan.Container) (map[string]podplan.Volume, []string, *podplan.Waiting) {
	var volumes map[string]podplan.Volume
	var digests []string
	var wait *podplan.Waiting
	for _, v := range pod.Spec.Volumes {
		if v.Image == nil || !slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return m.Name == v.Name }) {
			continue
		}
		pulled := w.imageVolume(pod, v)
		switch {
		case pulled.done:
			image := pulled.value.(images.Image)
			if volumes == nil {
				volumes = map[string]podplan.Volume{}
			}
			volumes[v.Name] = podplan.Volume{Layers: image.Layers}
			digests = append(digests, image.Digest)
		case pulled.err != nil:
			waiting := imageWaiting(pulled.err)
			wait = &waiting
		case wait == nil:
			wait = &podplan.Waiting{}
		}
	}
	return volumes, digests, wait
}

func imageVolumeOp(volume string) string { return imageOps + "volume:" + volume }

// imageVolume pulls by the volume's own policy. The operation's result keeps the image from
// being removed while this agent lives, the attempts' records do so after it.
func (w *worker) imageVolume(pod *corev1.Pod, v corev1.Volume) *op {
	return w.begin(imageVolumeOp(v.Name), imageRetry, func(ctx context.Context) (any, error) {
		var image images.Image
		err := w.step("image-volume", func() (err error) {
			image, err = w.p.deps.Images.Ensure(ctx, images.PullRequest{
				Ref: v.Image.Reference, Policy: v.Image.PullPolicy, Secrets: w.pullSecrets(ctx, pod), Pod: pod,
				Event: func(e images.PullEvent) { w.event(pod, nil, e.Type, e.Reason, e.Message) },
			})
			return err
		})
		if err == nil && len(image.Layers) == 0 {
			err = &images.Error{Reason: "ErrImagePull", Image: v.Image.Reference, Err: fmt.Errorf("image %q has no layers and cannot be a volume", v.Image.Reference)}
		}
		return image, err
	})
}

// volumesPresent looks for the images that are volumes, which are held. If one was removed since
// it was pulled they are ensured again.
func (w *worker) volumesPresent(ctx context.Context, pod *corev1.Pod, digests []string) (present bool, err error) {
	present = true
	for _, digest := range digests {
		_, ok, err := w.p.deps.Images.Get(ctx, digest)
		if err != nil {
			return false, fmt.Errorf("look for image of volume: %w", err)
		}
		present = present && ok
	}
	if present {
		return true, nil
	}
	for _, v := range pod.Spec.Volumes {
		w.forget(imageVolumeOp(v.Name))
	}
	w.wakeUp()
	return false, nil
}

// checkImagePaths refuses sub-paths that no layer has. The launcher resolves what is found.
func checkImagePaths(mounts []launchspec.Mount) error {
	for _, m := range mounts {
		if m.Kind != launchspec.MountImage || m.SubPath == "" {
			continue
		}
		if !slices.ContainsFunc(m.Lowers, func(layer string) bool { return hasPath(layer, m.SubPath) }) {
			return fmt.Errorf("image volume mount failed: subpath %q not found in image volume", m.SubPath)
		}
	}
	return nil
}

func hasPath(layer, sub string) bool {
	root, err := os.OpenRoot(layer)
	if err != nil {
		return false
	}
	defer root.Close()
	_, err = root.Lstat(sub)
	return err == nil
}
