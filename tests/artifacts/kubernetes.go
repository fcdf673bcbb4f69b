package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// KubernetesVersion is the one that the rig's go.mod pins.
const KubernetesVersion = "v1.35.4"

// Components are the names under which the Kubernetes artifact is linked.
var Components = []string{
	"etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl",
}

// Kubernetes builds the control plane and kubectl and returns a directory of
// programs named as upstream names them (Components). Cold: 4-12 minutes on 2 cores.
func (s *Store) Kubernetes(ctx context.Context) (dir string, err error) {
	program, err := testProgram("kubernetes", "./cmd/kubernetes")
	if err != nil {
		return "", err
	}
	recipe, err := program.recipe(ctx)
	if err != nil {
		return "", err
	}
	compile := recipe.Build
	recipe.Inputs = append(recipe.Inputs, Components...)
	recipe.Build = func(ctx context.Context, dir string, step *progress.Step) error {
		if err := compile(ctx, dir, step); err != nil {
			return err
		}
		return linkComponents(dir)
	}
	return s.Get(ctx, recipe)
}

func linkComponents(dir string) error {
	for _, name := range Components {
		if err := os.Symlink("kubernetes", filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
	}
	return nil
}

// Agnhost builds upstream's test server and returns the program's path.
func (s *Store) Agnhost(ctx context.Context) (file string, err error) {
	return s.goTestProgram(ctx, "agnhost", "k8s.io/kubernetes/test/images/agnhost")
}

// E2E builds upstream's end-to-end tests and returns the program's path. Cold: 6 minutes.
func (s *Store) E2E(ctx context.Context) (file string, err error) {
	program, err := testProgram("e2e.test", "k8s.io/kubernetes/test/e2e")
	if err != nil {
		return "", err
	}
	program.test = true
	return s.goProgram(ctx, program)
}

// Ginkgo builds the runner that splits upstream's tests over processes.
func (s *Store) Ginkgo(ctx context.Context) (file string, err error) {
	return s.goTestProgram(ctx, "ginkgo", "github.com/onsi/ginkgo/v2/ginkgo")
}

// Pause builds the program of the pause image and returns its path.
func (s *Store) Pause(ctx context.Context) (file string, err error) {
	return s.goTestProgram(ctx, "pause", "./cmd/pause")
}

// Plugins builds the CSI driver and device plugin for tests and returns the program's path.
func (s *Store) Plugins(ctx context.Context) (file string, err error) {
	return s.goTestProgram(ctx, "plugins", "./cmd/plugins")
}

// Metalrig builds the rig's own command, which the rig runs for its long-lived
// helpers, and returns the program's path.
func (s *Store) Metalrig(ctx context.Context) (file string, err error) {
	return s.goTestProgram(ctx, "metalrig", "./cmd/metalrig")
}

func (s *Store) goTestProgram(ctx context.Context, name, pkg string) (string, error) {
	program, err := testProgram(name, pkg)
	if err != nil {
		return "", err
	}
	return s.goProgram(ctx, program)
}

func (s *Store) goProgram(ctx context.Context, program goProgram) (string, error) {
	recipe, err := program.recipe(ctx)
	if err != nil {
		return "", err
	}
	dir, err := s.Get(ctx, recipe)
	return filepath.Join(dir, program.name), err
}

// testProgram is a program of the tests' module, stamped with Kubernetes' version.
func testProgram(name, pkg string) (goProgram, error) {
	root, err := Root()
	if err != nil {
		return goProgram{}, err
	}
	return goProgram{name: name, module: filepath.Join(root, "tests"), pkg: pkg, ldflags: versionFlags(KubernetesVersion)}, nil
}

// versionFlags stamp both packages in which Kubernetes keeps its version (v1.2.3).
func versionFlags(version string) []string {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		flags = append(flags,
			"-X "+pkg+".gitVersion="+version,
			"-X "+pkg+".gitMajor="+major,
			"-X "+pkg+".gitMinor="+minor,
		)
	}
	return flags
}

// Root is the checkout's root directory: $VK_METAL_ROOT, or the nearest parent of the
// working directory that holds the tests' module.
func Root() (string, error) {
	if root := os.Getenv("VK_METAL_ROOT"); root != "" {
		return root, nil
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for ; dir != "/"; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "tests", "go.mod")); err == nil {
			return dir, nil
		}
	}
	return "", fmt.Errorf("find the checkout: no tests/go.mod above the working directory (set VK_METAL_ROOT)")
}
