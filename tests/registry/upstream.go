package registry

import (
	"context"
	"fmt"
	"path/filepath"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// CoreDNS is the image of the cluster's DNS server.
const CoreDNS = "registry.k8s.io/coredns/coredns:v1.12.4"

// upstreamImages is the prefix of the images that upstream's tests name.
const upstreamImages = "registry.k8s.io/e2e-test-images/"

// upstream are the ingredients of the images that only upstream's suite and a cluster
// with DNS need; they take minutes to build.
type upstream struct {
	ingredients
	programs map[string]string // by name
	coredns  string            // program
	shell    string            // program: busybox whose sh behaves as in the busybox image
	nginx    string            // tree
	perl     string            // tree
	ipc      string            // tree
	images   string            // directory of upstream's Dockerfiles
}

// UpstreamImages makes all images that upstream's conformance suite names (also those
// that Images makes, where upstream's have more in them) and returns a layout like that of Images.
func UpstreamImages(ctx context.Context, store *artifacts.Store) (string, error) {
	made, err := findUpstream(ctx, store)
	if err != nil {
		return "", fmt.Errorf("make images: %w", err)
	}
	inputs := append(made.inputs(), made.coredns, made.shell, made.nginx, made.perl, made.ipc, made.images)
	for _, name := range sortedNames(made.programs) {
		inputs = append(inputs, made.programs[name])
	}
	return layoutOf(ctx, store, "upstream-images", inputs, made.all)
}

func findUpstream(ctx context.Context, store *artifacts.Store) (made upstream, err error) {
	if made.ingredients, err = findIngredients(ctx, store); err != nil {
		return made, err
	}
	if made.programs, err = store.Upstream(ctx); err != nil {
		return made, err
	}
	if made.coredns, err = store.CoreDNS(ctx); err != nil {
		return made, err
	}
	if made.shell, err = store.Busybox(ctx); err != nil {
		return made, err
	}
	if made.nginx, err = store.DebianTree(ctx, "tree-nginx", "nginx-light", "busybox-static", "bash-static"); err != nil {
		return made, err
	}
	if made.perl, err = store.DebianTree(ctx, "tree-perl", "perl", "busybox-static", "bash-static"); err != nil {
		return made, err
	}
	if made.ipc, err = store.DebianTree(ctx, "tree-ipc", "util-linux", "busybox-static", "bash-static"); err != nil {
		return made, err
	}
	module, err := moduleDir(ctx, "k8s.io/kubernetes")
	made.images = filepath.Join(module, "test", "images")
	return made, err
}

// all are the images; docs/conformance-images.md says the same in words.
func (made upstream) all(ctx context.Context) ([]image, error) {
	tools, err := made.toolsLayer(ctx)
	if err != nil {
		return nil, err
	}
	b := &builder{upstream: made, ctx: ctx}
	busybox := b.busybox()
	dns := b.layer("", entry{path: "coredns", mode: 0o755, file: made.coredns})
	agnhost := b.layer("", made.agnhostEntries()...)
	shell := func(user string) v1.Config { return v1.Config{Cmd: []string{"sh"}, Env: pathEnv, User: user} }
	all := []image{
		{names: []string{Busybox, BusyboxPrev}, layers: []v1.Layer{busybox}, config: shell("")},
		{names: []string{NonRoot}, layers: []v1.Layer{busybox}, config: shell("1234")},
		{names: []string{Agnhost, AgnhostPrev}, layers: []v1.Layer{tools, dns, agnhost}, config: agnhostConfig},
		{names: names("jessie-dnsutils:1.7"), layers: []v1.Layer{tools, dns}, config: v1.Config{Cmd: []string{"bash"}, Env: pathEnv}},
		{names: []string{CoreDNS}, layers: []v1.Layer{dns, b.nonroot()}, config: corednsConfig},
		b.agnhostWith("nautilus", "nautilus.jpg", tools, agnhost),
		b.agnhostWith("kitten", "kitten.jpg", tools, agnhost),
		b.nginx(),
		b.tree("perl:5.26", made.perl, v1.Config{Cmd: []string{"perl", "-de0"}, Env: pathEnv}),
		b.tree("ipc-utils:1.3", made.ipc, v1.Config{Cmd: []string{"sh"}, Env: pathEnv}),
		b.nonewprivs(busybox),
		b.consumer(busybox),
		b.program("sample-apiserver:1.29.2", "sample-apiserver", v1.Config{Entrypoint: []string{"/sample-apiserver"}, Env: pathEnv}),
		b.program("regression-issue-74839:1.4", "regression-issue-74839", v1.Config{Entrypoint: []string{"/regression-issue-74839"}, Env: pathEnv}),
		b.etcd(),
	}
	return all, b.err
}

var corednsConfig = v1.Config{
	Entrypoint: []string{"/coredns"}, Env: pathEnv, WorkingDir: "/", User: "nonroot:nonroot", ExposedPorts: ports("53/tcp", "53/udp"),
}

func names(short string) []string { return []string{upstreamImages + short} }
