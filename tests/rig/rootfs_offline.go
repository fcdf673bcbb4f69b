package rig

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// fetchOffline downloads what cfg.Offline needs on top of the root. It uses the host's
// apt with its transports and proxies, and the root's package state and suite.
func (b *rootBuild) fetchOffline(ctx context.Context) error {
	if len(b.cfg.Offline) == 0 {
		return nil
	}
	fmt.Fprintf(b.progress, "root: fetching packages for offline installation\n")
	scratch := b.tmp + ".apt"
	defer os.RemoveAll(scratch)
	for _, dir := range []string{"state/lists/partial", "cache/archives/partial", "parts"} {
		if err := os.MkdirAll(filepath.Join(scratch, dir), 0o755); err != nil {
			return fmt.Errorf("make apt directories: %w", err)
		}
	}
	list := filepath.Join(scratch, "sources.list")
	if err := os.WriteFile(list, []byte(b.mirror.line(b.cfg.Suite)), 0o644); err != nil {
		return fmt.Errorf("write apt sources: %w", err)
	}
	opts := []string{
		"-o", "Dir::State=" + scratch + "/state", "-o", "Dir::State::status=" + b.tmp + "/var/lib/dpkg/status",
		"-o", "Dir::Cache=" + scratch + "/cache", "-o", "Dir::Etc::sourcelist=" + list, "-o", "Dir::Etc::sourceparts=" + scratch + "/parts",
		"-o", "Dir::Etc::preferences=/dev/null", "-o", "Dir::Etc::preferencesparts=" + scratch + "/parts",
		"-o", "APT::Sandbox::User=root", "-o", "APT::Update::Post-Invoke-Success::=true", "-o", "Binary::apt-get::APT::Keep-Downloaded-Packages=true",
	}
	if err := b.command(ctx, "apt-get", append(opts, "update")...); err != nil {
		return err
	}
	install := append(slices.Clone(opts), "--download-only", "--no-install-recommends", "-y", "install")
	if err := b.command(ctx, "apt-get", append(install, b.cfg.Offline...)...); err != nil {
		return err
	}
	repo := filepath.Join(b.tmp, offlineRepo)
	if err := os.MkdirAll(repo, 0o755); err != nil {
		return fmt.Errorf("make offline repository: %w", err)
	}
	debs, err := filepath.Glob(scratch + "/cache/archives/*.deb")
	if err != nil {
		return err
	}
	return b.command(ctx, "cp", append(debs, repo)...)
}

// indexOffline writes the repository's index and lets the root's apt read it.
func (b *rootBuild) indexOffline(ctx context.Context) error {
	repo := filepath.Join(b.tmp, offlineRepo)
	if err := os.MkdirAll(repo, 0o755); err != nil {
		return fmt.Errorf("make offline repository: %w", err)
	}
	debs, err := filepath.Glob(repo + "/*.deb")
	if err != nil {
		return err
	}
	var index strings.Builder
	for _, deb := range debs {
		entry, err := packageEntry(ctx, deb)
		if err != nil {
			return err
		}
		index.WriteString(entry + "\n")
	}
	if err := os.WriteFile(filepath.Join(repo, "Packages"), []byte(index.String()), 0o644); err != nil {
		return fmt.Errorf("write package index: %w", err)
	}
	clean := "rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb && apt-get -q update"
	return b.command(ctx, "chroot", b.tmp, "/bin/sh", "-ec", clean)
}

// check asserts that the offline packages can be installed without a network.
func (b *rootBuild) check(ctx context.Context) error {
	if len(b.cfg.Offline) == 0 {
		return nil
	}
	args := append([]string{b.tmp, "apt-get", "-s", "-q", "--no-install-recommends", "install"}, b.cfg.Offline...)
	return b.command(ctx, "chroot", args...)
}

// packageEntry is a package file's entry in an index.
func packageEntry(ctx context.Context, deb string) (string, error) {
	control, err := exec.CommandContext(ctx, "dpkg-deb", "-f", deb).Output()
	if err != nil {
		return "", fmt.Errorf("read control of %s: %w", deb, err)
	}
	f, err := os.Open(deb)
	if err != nil {
		return "", fmt.Errorf("index package: %w", err)
	}
	defer f.Close()
	h := sha256.New()
	size, err := io.Copy(h, f)
	if err != nil {
		return "", fmt.Errorf("index package %s: %w", deb, err)
	}
	return fmt.Sprintf("%sFilename: ./%s\nSize: %d\nSHA256: %x\n", control, filepath.Base(deb), size, h.Sum(nil)), nil
}
