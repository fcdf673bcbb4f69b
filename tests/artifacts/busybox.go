package artifacts

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// busyboxScript builds upstream's source without Debian's patches: one of them makes the
// shell drop environment variables whose names are no identifiers, which upstream's tests read back.
const busyboxScript = `set -e
tar -xjf busybox_*.orig.tar.bz2 --strip-components=1 --one-top-level=source
cd source
make -s defconfig >/dev/null
sed -i 's/^# CONFIG_STATIC is not set/CONFIG_STATIC=y/; s/^CONFIG_TC=y/# CONFIG_TC is not set/' .config
make -s oldconfig </dev/null >/dev/null
make -s -j "$1" busybox 2>&1
cp busybox ..
cd ..
rm -rf source busybox_* sources lists
`

// Busybox builds a static busybox, as the busybox image has it, from the source in the
// host's Debian and returns the program's path. It needs gcc, make and the C library's headers.
func (s *Store) Busybox(ctx context.Context) (file string, err error) {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("find out the host's distribution: %w", err)
	}
	dir, err := s.Get(ctx, Recipe{
		Name: "busybox", Inputs: []string{busyboxScript, string(release), runtime.GOARCH},
		Build: func(ctx context.Context, dir string, step *progress.Step) error {
			step.Note("downloading its source")
			if err := downloadSource(ctx, dir, "busybox"); err != nil {
				return err
			}
			step.Note("compiling")
			cmd := exec.CommandContext(ctx, "bash", "-c", busyboxScript, "busybox", strconv.Itoa(runtime.NumCPU()))
			cmd.Dir = dir
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("compile busybox: %w: %s", err, tail(out))
			}
			return nil
		},
	})
	return filepath.Join(dir, "busybox"), err
}

// downloadSource has the host's apt download and verify a Debian source package into dir,
// with lists of its own: hosts seldom list sources.
func downloadSource(ctx context.Context, dir, name string) error {
	sources := filepath.Join(dir, "sources")
	lists := filepath.Join(dir, "lists")
	if err := errors.Join(os.MkdirAll(sources, 0o755), os.MkdirAll(filepath.Join(lists, "partial"), 0o755)); err != nil {
		return fmt.Errorf("download source of %s: %w", name, err)
	}
	line, err := sourceLine(ctx)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(sources, "debian.list"), []byte(line), 0o644); err != nil {
		return fmt.Errorf("download source of %s: %w", name, err)
	}
	options := []string{
		"-q", "-o", "Dir::Etc::sourcelist=/dev/null", "-o", "Dir::Etc::sourceparts=" + sources,
		"-o", "Dir::State::lists=" + lists, "-o", "APT::Sandbox::User=root",
	}
	for _, args := range [][]string{{"update"}, {"source", "--download-only", name}} {
		cmd := exec.CommandContext(ctx, "apt-get", append(options, args...)...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("download source of %s: apt-get %s: %w: %s", name, args[0], err, tail(out))
		}
	}
	return nil
}

// sourceLine is the source list of the first Debian release that the host's apt knows.
func sourceLine(ctx context.Context) (string, error) {
	const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg" // package debian-archive-keyring
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN) $(CODENAME) $(COMPONENT) $(REPO_URI)",
		"Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("ask apt for the host's Debian mirror: %w", withStderr(err))
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) == 4 && f[0] == "Debian" && f[2] == "main" && !strings.Contains(f[1], "-") {
			return fmt.Sprintf("deb-src [signed-by=%s] %s %s main\n", keyring, f[3], f[1]), nil
		}
	}
	return "", errors.New("ask apt for the host's Debian mirror: it knows none (run apt-get update)")
}

// BusyboxApplets lists all applets of a busybox program.
func BusyboxApplets(ctx context.Context, program string) ([]string, error) {
	out, err := exec.CommandContext(ctx, program, "--list").Output()
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets: %w", withStderr(err))
	}
	return strings.Fields(string(out)), nil
}
