package registry

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// Controller is the image that packaging/manifests/controller.yaml names.
const Controller = "docker.io/library/vk-metal-controller:latest"

// ControllerImage makes it of the program in the package and returns an OCI layout
// directory as Images does.
func ControllerImage(ctx context.Context, store *artifacts.Store, deb string) (string, error) {
	return layoutOf(ctx, store, "controller-image", []string{deb}, func(ctx context.Context) ([]image, error) {
		dir, err := os.MkdirTemp("", "controller")
		if err != nil {
			return nil, fmt.Errorf("make a directory: %w", err)
		}
		defer os.RemoveAll(dir)
		if out, err := exec.CommandContext(ctx, "dpkg-deb", "--extract", deb, dir).CombinedOutput(); err != nil {
			return nil, fmt.Errorf("unpack %s: %w: %s", deb, err, out)
		}
		program, err := layer("", entry{path: "usr", isDir: true, mode: 0o755}, entry{path: "usr/bin", isDir: true, mode: 0o755},
			entry{path: "usr/bin/vk-metal", mode: 0o755, file: filepath.Join(dir, "usr", "bin", "vk-metal")})
		if err != nil {
			return nil, err
		}
		return []image{{names: []string{Controller}, layers: []v1.Layer{program}, config: v1.Config{Env: pathEnv}}}, nil
	})
}
