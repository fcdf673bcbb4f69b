package artifacts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// debianTreeVersion changes when the way a tree is made does.
const debianTreeVersion = "1"

// DebianTree downloads packages of the host's Debian with what they depend on,
// verified by the host's apt, and unpacks them (no maintainer script runs) into a
// tree with a merged /usr. It returns the tree's path; do not write into it.
func (s *Store) DebianTree(ctx context.Context, name string, packages ...string) (string, error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("find out the host's distribution: %w", err)
	}
	packages = slices.Sorted(slices.Values(packages))
	dir, err := s.Get(ctx, Recipe{
		Name:   name,
		Inputs: append([]string{debianTreeVersion, string(release)}, packages...),
		Build: func(ctx context.Context, dir string, step *progress.Step) error {
			return buildDebianTree(ctx, dir, packages, step)
		},
	})
	return filepath.Join(dir, "root"), err
}

func buildDebianTree(ctx context.Context, dir string, packages []string, step *progress.Step) error {
	archives := filepath.Join(dir, "archives")
	root := filepath.Join(dir, "root")
	if err := os.MkdirAll(filepath.Join(archives, "partial"), 0o755); err != nil {
		return fmt.Errorf("make the download directory: %w", err)
	}
	step.Note("downloading %d packages and what they need", len(packages))
	if err := download(ctx, archives, packages); err != nil {
		return err
	}
	if err := mergedUsr(root); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(archives, "*.deb"))
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}
	for i, deb := range debs {
		step.Note("unpacking %d of %d packages", i+1, len(debs))
		if err := unpack(ctx, deb, root); err != nil {
			return err
		}
	}
	return dropDocumentation(root, archives)
}

// download lets apt resolve against an empty system, so that nothing that the host
// happens to have is left out.
func download(ctx context.Context, archives string, packages []string) error {
	args := append([]string{
		"-o", "Dir::State::status=/dev/null", "-o", "Dir::Cache::archives=" + archives, "-o", "APT::Sandbox::User=root",
		"-o", "Debug::NoLocking=true", "--no-install-recommends", "--download-only", "-y", "-q", "install",
	}, packages...)
	if out, err := exec.CommandContext(ctx, "apt-get", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("download packages: %w: %s", err, tail(out))
	}
	return nil
}

func mergedUsr(root string) error {
	for _, name := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", name), 0o755); err != nil {
			return fmt.Errorf("merge /usr: %w", err)
		}
		if err := os.Symlink("usr/"+name, filepath.Join(root, name)); err != nil {
			return fmt.Errorf("merge /usr: %w", err)
		}
	}
	return nil
}

// unpack goes through tar, because dpkg-deb would replace the /lib link by a directory.
func unpack(ctx context.Context, deb, root string) error {
	script := `set -o pipefail; dpkg-deb --fsys-tarfile "$0" | tar -x --keep-directory-symlink -C "$1"`
	if out, err := exec.CommandContext(ctx, "bash", "-c", script, deb, root).CombinedOutput(); err != nil {
		return fmt.Errorf("unpack %s: %w: %s", filepath.Base(deb), err, tail(out))
	}
	return nil
}

func dropDocumentation(root, archives string) error {
	for _, path := range []string{"usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/locale", "usr/share/lintian"} {
		if err := os.RemoveAll(filepath.Join(root, path)); err != nil {
			return fmt.Errorf("drop documentation: %w", err)
		}
	}
	return os.RemoveAll(archives)
}

// exists says whether a path is there, as a link, too.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// Applets lists the applets of the tree's static busybox that no other program of
// the tree provides.
func Applets(ctx context.Context, tree string) ([]string, error) {
	out, err := exec.CommandContext(ctx, filepath.Join(tree, "bin", "busybox"), "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", withStderr(err))
	}
	var missing []string
	for _, applet := range strings.Fields(string(out)) {
		taken := slices.ContainsFunc([]string{"usr/bin", "usr/sbin"}, func(dir string) bool {
			return exists(filepath.Join(tree, dir, applet))
		})
		if !taken {
			missing = append(missing, applet)
		}
	}
	return missing, nil
}

func tail(out []byte) string {
	const most = 2000
	out = bytes.TrimSpace(out)
	return string(out[max(0, len(out)-most):])
}
