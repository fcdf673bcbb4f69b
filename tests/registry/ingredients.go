package registry

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// ingredients are the files that images are made of: paths of the cache.
type ingredients struct {
	agnhost string // program
	pause   string // program
	tools   string // tree: the shell and programs that upstream's tests call
	busybox string // tree: static busybox and bash only
	porter  string // directory with the certificate that `agnhost porter` serves
}

func findIngredients(ctx context.Context, store *artifacts.Store) (made ingredients, err error) {
	if made.agnhost, err = store.Agnhost(ctx); err != nil {
		return made, err
	}
	if made.pause, err = store.Pause(ctx); err != nil {
		return made, err
	}
	made.busybox, err = store.DebianTree(ctx, "tree-busybox", "busybox-static", "bash-static")
	if err != nil {
		return made, err
	}
	made.tools, err = store.DebianTree(ctx, "tree-tools", "busybox-static", "bash-static", "bind9-dnsutils",
		"netcat-openbsd", "iproute2", "iperf", "curl", "libc-bin", "util-linux")
	if err != nil {
		return made, err
	}
	images, err := moduleDir(ctx, "k8s.io/kubernetes")
	made.porter = filepath.Join(images, "test", "images", "agnhost", "porter")
	return made, err
}

// inputs are all that the images depend on.
func (made ingredients) inputs() []string {
	return []string{made.agnhost, made.pause, made.tools, made.busybox, made.porter}
}

// moduleDir is where the Go module's source lies.
func moduleDir(ctx context.Context, module string) (string, error) {
	root, err := artifacts.Root()
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module)
	cmd.Dir = filepath.Join(root, "tests")
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("find module %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// pathEnv is the environment that every image has.
var pathEnv = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

var agnhostConfig = v1.Config{
	Entrypoint: []string{"/agnhost"}, Cmd: []string{"pause"}, Env: pathEnv,
	ExposedPorts: ports("80/tcp", "8080/tcp", "8081/tcp", "9376/tcp", "5000/tcp"),
}

func ports(names ...string) map[string]struct{} {
	set := map[string]struct{}{}
	for _, name := range names {
		set[name] = struct{}{}
	}
	return set
}

func (made ingredients) images(ctx context.Context) ([]image, error) {
	busybox, err := made.busyboxLayer(ctx)
	if err != nil {
		return nil, err
	}
	tools, err := made.toolsLayer(ctx)
	if err != nil {
		return nil, err
	}
	agnhost, err := layer("", made.agnhostEntries()...)
	if err != nil {
		return nil, err
	}
	pause, err := layer("", entry{path: "pause", mode: 0o755, file: made.pause})
	if err != nil {
		return nil, err
	}
	shell := v1.Config{Cmd: []string{"sh"}, Env: pathEnv}
	as := func(user string) v1.Config { return v1.Config{Cmd: []string{"sh"}, Env: pathEnv, User: user} }
	return []image{
		{names: []string{Busybox, BusyboxPrev, "docker.io/library/busybox:latest", "docker.io/library/busybox:1.37"}, layers: []v1.Layer{busybox}, config: shell},
		{names: []string{Private}, layers: []v1.Layer{busybox}, config: shell},
		{names: []string{NonRoot}, layers: []v1.Layer{busybox}, config: as("1234")},
		{names: []string{NamedUser}, layers: []v1.Layer{busybox}, config: as("nobody")},
		{names: []string{Agnhost, AgnhostPrev}, layers: []v1.Layer{tools, agnhost}, config: agnhostConfig},
		{names: []string{Pause}, layers: []v1.Layer{pause}, config: v1.Config{Entrypoint: []string{"/pause"}, Env: pathEnv, User: "65535:65535"}},
	}, nil
}

// busyboxLayer has the whole system in /bin. Its sh is bash, because ash drops
// environment variables whose names are no identifiers (data-1), which upstream's
// tests read back.
func (made ingredients) busyboxLayer(ctx context.Context) (v1.Layer, error) {
	applets, err := artifacts.Applets(ctx, made.busybox)
	if err != nil {
		return nil, err
	}
	entries := append(baseEntries(),
		entry{path: "bin", isDir: true, mode: 0o755},
		entry{path: "bin/busybox", mode: 0o755, file: filepath.Join(made.busybox, "bin", "busybox")},
		entry{path: "bin/bash", mode: 0o755, file: filepath.Join(made.busybox, "bin", "bash-static")},
		entry{path: "bin/sh", link: "bash"},
	)
	for _, applet := range applets {
		if applet != "sh" && applet != "bash" && applet != "busybox" {
			entries = append(entries, entry{path: "bin/" + applet, link: "busybox"})
		}
	}
	return layer("", entries...)
}

// toolsLayer is the Debian tree with busybox for everything that the tree lacks.
func (made ingredients) toolsLayer(ctx context.Context) (v1.Layer, error) {
	applets, err := artifacts.Applets(ctx, made.tools)
	if err != nil {
		return nil, err
	}
	entries := append(baseEntries(),
		entry{path: "usr/bin/bash", link: "bash-static"},
		entry{path: "usr/bin/sh", link: "bash-static"},
		entry{path: "usr/bin/nc", link: "nc.openbsd"},
		entry{path: "usr/local/bin", isDir: true, mode: 0o755},
		entry{path: "usr/local/bin/iperf", link: "/usr/bin/iperf"},
	)
	for _, applet := range applets {
		if applet != "sh" && applet != "bash" && applet != "nc" {
			entries = append(entries, entry{path: "usr/bin/" + applet, link: "busybox"})
		}
	}
	return layer(made.tools, entries...)
}

// baseEntries are what every image with a shell has.
func baseEntries() []entry {
	passwd := "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n" +
		"user-defined-in-image:x:1000:1000::/home/user-defined-in-image:/bin/sh\n"
	group := "root:x:0:\nnogroup:x:65534:\nuser-defined-in-image:x:1000:\n" +
		"group-defined-in-image:x:50000:user-defined-in-image\n"
	return []entry{
		{path: "etc", isDir: true, mode: 0o755},
		{path: "etc/passwd", mode: 0o644, data: []byte(passwd)},
		{path: "etc/group", mode: 0o644, data: []byte(group)},
		{path: "etc/nsswitch.conf", mode: 0o644, data: []byte("passwd: files\ngroup: files\nhosts: files dns\n")},
		{path: "home", isDir: true, mode: 0o755},
		{path: "home/user-defined-in-image", isDir: true, mode: 0o755, uid: 1000, gid: 1000},
		{path: "root", isDir: true, mode: 0o700},
		{path: "tmp", isDir: true, mode: 0o1777},
		{path: "var", isDir: true, mode: 0o755},
		{path: "var/tmp", isDir: true, mode: 0o1777},
	}
}

// agnhostEntries follow upstream's Dockerfile (test/images/agnhost). Not there: the
// registry that `agnhost fake-registry-server` serves, and CoreDNS.
func (made ingredients) agnhostEntries() []entry {
	return []entry{
		{path: "agnhost", mode: 0o755, file: made.agnhost},
		{path: "agnhost-2", link: "agnhost"},
		{path: "localhost.crt", mode: 0o644, file: filepath.Join(made.porter, "localhost.crt")},
		{path: "localhost.key", mode: 0o644, file: filepath.Join(made.porter, "localhost.key")},
		{path: "uploads", isDir: true, mode: 0o755},
	}
}
