package registry

import (
	"context"
	"maps"
	"path/filepath"
	"slices"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/vk-metal/vk-metal/tests/artifacts"
)

// builder makes images and keeps the first error.
type builder struct {
	upstream
	ctx context.Context
	err error
}

func (b *builder) layer(tree string, entries ...entry) v1.Layer {
	if b.err != nil {
		return nil
	}
	var made v1.Layer
	made, b.err = layer(tree, entries...)
	return made
}

// nonroot has the users of the distroless images.
func (b *builder) nonroot() v1.Layer {
	passwd := "root:x:0:0:root:/root:/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/sbin/nologin\n" +
		"nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin\n"
	return b.layer("",
		entry{path: "etc", isDir: true, mode: 0o755},
		entry{path: "etc/passwd", mode: 0o644, data: []byte(passwd)},
		entry{path: "etc/group", mode: 0o644, data: []byte("root:x:0:\nnobody:x:65534:\nnonroot:x:65532:\n")},
		entry{path: "tmp", isDir: true, mode: 0o1777})
}

// busybox has the whole system in /bin, as the busybox image.
func (b *builder) busybox() v1.Layer {
	applets, err := artifacts.BusyboxApplets(b.ctx, b.upstream.shell)
	if err != nil {
		b.err = err
		return nil
	}
	entries := append(baseEntries(),
		entry{path: "bin", isDir: true, mode: 0o755},
		entry{path: "bin/busybox", mode: 0o755, file: b.upstream.shell})
	for _, applet := range applets {
		if applet != "busybox" {
			entries = append(entries, entry{path: "bin/" + applet, link: "busybox"})
		}
	}
	return b.layer("", entries...)
}

// program is an image of one static program in its root, and nothing else.
func (b *builder) program(short, program string, config v1.Config) image {
	file := b.layer("", entry{path: program, mode: 0o755, file: b.programs[program]},
		entry{path: "tmp", isDir: true, mode: 0o1777})
	return image{names: names(short), layers: []v1.Layer{file}, config: config}
}

// agnhostWith is agnhost as a web server for one picture.
func (b *builder) agnhostWith(name, picture string, below ...v1.Layer) image {
	html := filepath.Join(b.images, name, "html")
	files := b.layer("",
		entry{path: picture, mode: 0o644, file: filepath.Join(html, picture)},
		entry{path: "data.json", mode: 0o644, file: filepath.Join(html, "data.json")})
	config := agnhostConfig
	config.Cmd = []string{"test-webserver"}
	return image{names: names(name + ":1.7"), layers: append(slices.Clone(below), files), config: config}
}

// tree is a Debian tree with busybox for everything that the tree lacks.
func (b *builder) tree(short, tree string, config v1.Config, more ...entry) image {
	if b.err != nil {
		return image{}
	}
	var applets []string
	if applets, b.err = artifacts.Applets(b.ctx, tree); b.err != nil {
		return image{}
	}
	entries := append(baseEntries(), entry{path: "usr/bin/bash", link: "bash-static"}, entry{path: "usr/bin/sh", link: "bash-static"})
	for _, applet := range applets {
		if applet != "sh" && applet != "bash" {
			entries = append(entries, entry{path: "usr/bin/" + applet, link: "busybox"})
		}
	}
	layers := []v1.Layer{b.layer(tree, entries...)}
	if len(more) > 0 {
		layers = append(layers, b.layer("", more...))
	}
	return image{names: names(short), layers: layers, config: config}
}

// nginxConf is that of the official image, which logs to the container's streams.
const nginxConf = `user www-data;
worker_processes 1;
error_log /dev/stderr warn;
pid /var/run/nginx.pid;
events { worker_connections 1024; }
http {
	include /etc/nginx/mime.types;
	default_type application/octet-stream;
	access_log /dev/stdout;
	sendfile on;
	keepalive_timeout 65;
	server {
		listen 80;
		server_name localhost;
		location / { root /usr/share/nginx/html; index index.html; }
	}
}
`

const nginxPage = `<!DOCTYPE html>
<html><head><title>Welcome to nginx!</title></head>
<body><h1>Welcome to nginx!</h1><p><em>Thank you for using nginx.</em></p></body></html>
`

// nginx is one image under the names of two versions that tests roll between.
func (b *builder) nginx() image {
	config := v1.Config{
		Cmd: []string{"nginx", "-g", "daemon off;"}, Env: pathEnv, ExposedPorts: ports("80/tcp"), StopSignal: "SIGTERM",
	}
	made := b.tree("nginx:1.14-4", b.upstream.nginx, config,
		entry{path: "etc/nginx/nginx.conf", mode: 0o644, data: []byte(nginxConf)},
		entry{path: "usr/share/nginx/html/index.html", mode: 0o644, data: []byte(nginxPage)},
		entry{path: "var/run", isDir: true, mode: 0o755},
		entry{path: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n" +
			"nobody:x:65534:65534:nobody:/:/bin/false\n")},
		entry{path: "etc/group", mode: 0o644, data: []byte("root:x:0:\nwww-data:x:33:\nnogroup:x:65534:\n")})
	made.names = append(made.names, names("nginx:1.15-4")...)
	return made
}

// nonewprivs has a set-uid program that tells its effective user.
func (b *builder) nonewprivs(busybox v1.Layer) image {
	nnp := b.layer("",
		entry{path: "usr/local/bin", isDir: true, mode: 0o755},
		entry{path: "usr/local/bin/nnp", mode: 0o6755, file: b.programs["nonewprivs"]})
	return image{names: names("nonewprivs:1.3"), layers: []v1.Layer{busybox, nnp}, config: v1.Config{Cmd: []string{"nnp"}, Env: pathEnv}}
}

func (b *builder) consumer(busybox v1.Layer) image {
	files := b.layer("",
		entry{path: "consumer", mode: 0o755, file: b.programs["resource-consumer"]},
		entry{path: "consume-cpu", mode: 0o755, file: b.programs["consume-cpu"]})
	config := v1.Config{Entrypoint: []string{"/consumer"}, Env: pathEnv, ExposedPorts: ports("8080/tcp")}
	return image{names: names("resource-consumer:1.13"), layers: []v1.Layer{busybox, files}, config: config}
}

func (b *builder) etcd() image {
	files := b.layer("",
		entry{path: "usr/local/bin", isDir: true, mode: 0o755},
		entry{path: "usr/local/bin/etcd", mode: 0o755, file: b.programs["etcd"]},
		entry{path: "var/etcd", isDir: true, mode: 0o700},
		entry{path: "tmp", isDir: true, mode: 0o1777})
	config := v1.Config{Env: pathEnv, WorkingDir: "/", ExposedPorts: ports("2379/tcp", "2380/tcp", "4001/tcp", "7001/tcp")}
	return image{names: []string{"registry.k8s.io/etcd:3.6.6-0"}, layers: []v1.Layer{files}, config: config}
}

func sortedNames(set map[string]string) []string { return slices.Sorted(maps.Keys(set)) }
