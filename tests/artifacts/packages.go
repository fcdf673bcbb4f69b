package artifacts

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// Package builds vk-metal's .deb from the checkout and returns its path: with the
// checkout's `make packages DIST=dir`, as a release does.
func (s *Store) Package(ctx context.Context) (deb string, err error) {
	return s.TaggedPackage(ctx, "")
}

// TaggedPackage is Package built with a build tag, for tests that need a special build.
func (s *Store) TaggedPackage(ctx context.Context, tag string) (deb string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	sources, err := projectHash(root)
	if err != nil {
		return "", fmt.Errorf("build the package: %w", err)
	}
	dir, err := s.Get(ctx, Recipe{
		Name:   "packages",
		Inputs: []string{runtime.Version(), sources, tag},
		Build: func(ctx context.Context, dir string, _ *progress.Step) error {
			return buildPackage(ctx, root, dir, tag)
		},
	})
	if err != nil {
		return "", err
	}
	return onlyOne(filepath.Join(dir, "*.deb"))
}

// projectHash covers what a package is made of: everything in the checkout but the
// tests, the documents and what Git does not know.
func projectHash(root string) (string, error) {
	entries, err := os.ReadDir(root)
	if err != nil {
		return "", err
	}
	var roots []string
	for _, entry := range entries {
		switch name := entry.Name(); {
		case strings.HasPrefix(name, "."), name == "tests", name == "docs", name == "bin", name == "dist":
		default:
			roots = append(roots, name)
		}
	}
	return HashTree(root, roots, func(path string) bool { return !strings.HasSuffix(path, "_test.go") })
}

func buildPackage(ctx context.Context, root, dir, tag string) error {
	out, err := exec.CommandContext(ctx, "make", "-C", root, "packages", "DIST="+dir, "TAGS="+tag).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make packages: %w: %s", err, tail(out))
	}
	return nil
}

func onlyOne(pattern string) (string, error) {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) != 1 {
		return "", fmt.Errorf("find the package: %d files match %s", len(found), pattern)
	}
	return found[0], nil
}
