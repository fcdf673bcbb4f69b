package rig

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// RootConfig is the recipe of a machine's root file system. Roots are cached under
// CacheDir() by the hash of the recipe.
type RootConfig struct {
	// Suite is Debian's code name; "" is bookworm.
	Suite string `json:"suite"`
	// Packages are installed on top of Debian's minimal base.
	Packages []string `json:"packages"`
	// Offline are packages that are not installed: they and what they depend on lie in a
	// local repository in the root, so that apt resolves declared dependencies honestly
	// without a network.
	Offline []string `json:"offline"`
	// VM makes it the root of a virtual machine: with a kernel, its initramfs, and the
	// rig's agent as a service.
	VM bool `json:"vm,omitempty"`
}

// DefaultRoot is Debian 12 with systemd and D-Bus and nothing else; what vk-metal's
// package may declare as a dependency can be installed offline.
func DefaultRoot() RootConfig {
	return RootConfig{
		Suite:    "bookworm",
		Packages: []string{"systemd", "systemd-sysv", "dbus"},
		Offline:  []string{"nftables", "iptables", "conntrack", "ca-certificates", "iproute2", "kmod", "socat", "dbus"},
	}
}

// VMRoot is Debian 13 with its kernel and the programs for what only a kernel of its own has:
// AppArmor, SELinux, quotas by project and an NFS server; otherwise as DefaultRoot.
func VMRoot() RootConfig {
	cfg := DefaultRoot()
	cfg.Suite, cfg.VM = "trixie", true
	cfg.Packages = append(cfg.Packages, "linux-image-cloud-"+runtime.GOARCH, "initramfs-tools", "apparmor", "xfsprogs", "nfs-kernel-server", "selinux-policy-default")
	cfg.Offline = append(cfg.Offline, "systemd-container", "debootstrap") // for a rig in there
	return cfg
}

// offlineRepo is where a root keeps the packages that it can install.
const offlineRepo = "/var/lib/offline-packages"

// initPath is where a root keeps the program that nspawn starts as PID 1.
const initPath = "/sbin/rig-init"

//go:embed rig-init.sh
var initScript []byte

// CacheDir is $VK_METAL_CACHE, or /var/cache/vk-metal-rig.
func CacheDir() string {
	if dir := os.Getenv("VK_METAL_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/vk-metal-rig"
}

// recipeVersion changes when the way a root is built does.
const recipeVersion = 1

// key names a recipe's root in the cache.
func (c RootConfig) key() (string, error) {
	b, err := json.Marshal(struct {
		RootConfig
		Version int
		Arch    string
		Init    string
		VM      string `json:",omitempty"`
	}{c, recipeVersion, runtime.GOARCH, string(initScript), c.vmRecipe()})
	if err != nil {
		return "", fmt.Errorf("hash root recipe: %w", err)
	}
	sum := sha256.Sum256(b)
	return c.Suite + "-" + hex.EncodeToString(sum[:8]), nil
}

// EnsureRoot returns the path of the built root for the recipe, which must not be written
// to, and builds it when it is missing (about a minute; needs debootstrap and the host's
// package mirror). Runs at the same time build once. progress may be nil.
func EnsureRoot(ctx context.Context, cfg RootConfig, progress io.Writer) (string, error) {
	if cfg.Suite == "" {
		cfg.Suite = "bookworm"
	}
	if progress == nil {
		progress = io.Discard
	}
	key, err := cfg.key()
	if err != nil {
		return "", err
	}
	return buildOnce(key, func(tmp string) error {
		b := &rootBuild{cfg: cfg, tmp: tmp, progress: progress}
		return b.run(ctx)
	})
}

// buildOnce returns the path of a cache entry under roots and lets build make it at a
// temporary path when it is missing. Of several callers at once one builds.
func buildOnce(key string, build func(tmp string) error) (string, error) {
	roots := filepath.Join(CacheDir(), "roots")
	if err := os.MkdirAll(roots, 0o755); err != nil {
		return "", fmt.Errorf("make cache: %w", err)
	}
	final := filepath.Join(roots, key)
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	unlock, err := lockPath(filepath.Join(roots, "."+key+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(final); err == nil { // another run has built it meanwhile
		return final, nil
	}
	tmp := filepath.Join(roots, "."+key+".tmp")
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("remove former try: %w", err)
	}
	if err := build(tmp); err != nil {
		return "", fmt.Errorf("build %s (see %s.log): %w", key, tmp, err)
	}
	if err := os.Rename(tmp, final); err != nil {
		return "", fmt.Errorf("build %s: %w", key, err)
	}
	return final, nil
}

// rootBuild builds one root in tmp.
type rootBuild struct {
	cfg      RootConfig
	tmp      string
	mirror   mirror
	log      *os.File
	progress io.Writer
}

// run makes the root from nothing.
func (b *rootBuild) run(ctx context.Context) error {
	var err error
	if b.log, err = os.Create(b.tmp + ".log"); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer b.log.Close()
	if b.mirror, err = findMirror("/etc/apt"); err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{
		b.bootstrap, b.fetchOffline, b.configure, b.indexOffline, b.configureVM, b.check,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// bootstrap runs debootstrap and turns its messages into progress.
func (b *rootBuild) bootstrap(ctx context.Context) error {
	fmt.Fprintf(b.progress, "root: installing Debian %s with debootstrap\n", b.cfg.Suite)
	args := []string{"--variant=minbase", "--include=" + strings.Join(b.cfg.Packages, ",")}
	if b.mirror.keyring != "" {
		args = append(args, "--keyring="+b.mirror.keyring)
	}
	args = append(args, b.cfg.Suite, b.tmp, b.mirror.uri)
	return b.command(ctx, "debootstrap", args...)
}

// configure makes the root bootable as any number of machines.
func (b *rootBuild) configure(context.Context) error {
	files := map[string]string{
		"/etc/machine-id":       "",
		"/etc/hostname":         "unconfigured\n",
		"/etc/resolv.conf":      "",
		"/etc/hosts":            "127.0.0.1 localhost\n::1 localhost ip6-localhost\n",
		"/etc/fstab":            "",
		"/etc/apt/sources.list": "deb [trusted=yes] file:" + offlineRepo + " ./\n",
		initPath:                string(initScript),
	}
	for path, content := range files {
		if err := os.WriteFile(filepath.Join(b.tmp, path), []byte(content), 0o644); err != nil {
			return fmt.Errorf("configure root: %w", err)
		}
	}
	err := errors.Join(
		os.Chmod(filepath.Join(b.tmp, initPath), 0o755),
		os.RemoveAll(filepath.Join(b.tmp, "var/lib/dbus/machine-id")),
		os.Symlink("/dev/null", filepath.Join(b.tmp, "etc/systemd/system/systemd-firstboot.service")),
	)
	if err != nil {
		return fmt.Errorf("configure root: %w", err)
	}
	return nil
}

// command runs a tool in mount and pid namespaces of its own: no mount and no process of
// it outlives it, and it does not outlive this program. Its output goes to the log; the tail is in the error.
func (b *rootBuild) command(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(append([]string{}, defaultEnv...), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	for _, key := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		if v, ok := os.LookupEnv(key); ok {
			cmd.Env = append(cmd.Env, key+"="+v)
		}
	}
	var tail tailBuffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(b.log, &tail), io.MultiWriter(b.log, &tail)
	cmd.SysProcAttr = &unix.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID, Unshareflags: unix.CLONE_NEWNS, Pdeathsig: unix.SIGKILL,
	}
	runtime.LockOSThread() // the parent's death that counts is this thread's
	defer runtime.UnlockOSThread()
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("run %s: %w: %s", name, err, tail.String())
	}
	return nil
}

// tailBuffer keeps the last bytes that were written.
type tailBuffer struct{ b []byte }

// tailSize is how much of a command's output an error quotes.
const tailSize = 2048

// Write never fails.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if n := len(t.b); n > tailSize {
		t.b = append(t.b[:0], t.b[n-tailSize:]...)
	}
	return len(p), nil
}

// String is the tail without surrounding space.
func (t *tailBuffer) String() string { return strings.TrimSpace(string(t.b)) }
