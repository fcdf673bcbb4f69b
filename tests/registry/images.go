// Package registry makes the container images that tests and demo run and serves
// them, under their usual names, on the rig's network. It owns the images' content
// and the registry process; it must not know who pulls.
package registry

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/progress"
)

// Names of the images, as a pod writes them.
const (
	Agnhost     = "registry.k8s.io/e2e-test-images/agnhost:2.59"
	AgnhostPrev = "registry.k8s.io/e2e-test-images/agnhost:2.55"
	Busybox     = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
	BusyboxPrev = "registry.k8s.io/e2e-test-images/busybox:1.36.1-1"
	NonRoot     = "registry.k8s.io/e2e-test-images/nonroot:1.4"
	Pause       = "registry.k8s.io/pause:3.10.1"
	// NamedUser runs as a user given by name, Private needs PrivateUser's password.
	NamedUser = Host + "/named-user:1"
	Private   = Host + "/private/busybox:1"
)

// annotation names an image of the layout, as `ctr image import` reads it.
const annotation = "org.opencontainers.image.ref.name"

// image is one image and all names that it has.
type image struct {
	names  []string
	layers []v1.Layer
	config v1.Config
}

// Images makes the images that most tests and the demo need and returns an OCI layout
// directory of them, each manifest annotated with its name.
func Images(ctx context.Context, store *artifacts.Store) (string, error) {
	made, err := findIngredients(ctx, store)
	if err != nil {
		return "", fmt.Errorf("make images: %w", err)
	}
	return layoutOf(ctx, store, "images", made.inputs(), made.images)
}

// layoutOf makes a layout of images, unless the one of the same inputs and of the same
// source of this package is there.
func layoutOf(ctx context.Context, store *artifacts.Store, name string, inputs []string, images func(context.Context) ([]image, error)) (string, error) {
	root, err := artifacts.Root()
	if err != nil {
		return "", err
	}
	source, err := artifacts.HashTree(root, []string{"tests/registry"}, func(path string) bool { return filepath.Ext(path) == ".go" })
	if err != nil {
		return "", fmt.Errorf("make images: %w", err)
	}
	return store.Get(ctx, artifacts.Recipe{
		Name:   name,
		Inputs: append([]string{source}, inputs...),
		Build: func(ctx context.Context, dir string, step *progress.Step) error {
			made, err := images(ctx)
			if err != nil {
				return err
			}
			return writeLayout(dir, made, step)
		},
	})
}

func writeLayout(dir string, images []image, step *progress.Step) error {
	out, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("make a layout: %w", err)
	}
	for i, image := range images {
		step.Note("image %d of %d", i+1, len(images))
		built, err := image.build()
		if err != nil {
			return fmt.Errorf("make %s: %w", image.names[0], err)
		}
		for _, name := range image.names {
			if err := out.AppendImage(built, layout.WithAnnotations(map[string]string{annotation: name})); err != nil {
				return fmt.Errorf("write %s: %w", name, err)
			}
		}
	}
	return nil
}

func (i image) build() (v1.Image, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	built, err := mutate.AppendLayers(base, i.layers...)
	if err != nil {
		return nil, err
	}
	file, err := built.ConfigFile()
	if err != nil {
		return nil, err
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config = i.config
	return mutate.ConfigFile(built, file)
}
