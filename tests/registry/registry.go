package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vk-metal/vk-metal/tests/cluster/pki"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// Host is the registry's own name, under which its private images are known. It
// resolves nowhere: the machines' hosts.toml leads to the address.
const Host = "registry.vk-metal.test"

// PrivateUser may pull private images and push.
const (
	PrivateUser     = "puller"
	PrivatePassword = "correct horse battery staple"
)

const (
	processName = "registry"
	httpPort    = 5000
	httpsPort   = 5001
)

// readyTimeout bounds the start of the registry, stopGrace its end.
const (
	readyTimeout = time.Minute
	stopGrace    = 10 * time.Second
)

// Registry is a handle on the registry that runs in a rig.
type Registry struct {
	endpoint rig.Endpoint
	pki      pki.Directory
	ca       *pki.Authority
}

// Up starts the registry of a rig, unless it runs, and waits until it answers.
// metalrig is the rig's command, layouts the images (see Images); a name in several is
// the last one's. One that runs with other layouts is started anew, without what was
// pushed to it.
func Up(ctx context.Context, r *rig.Rig, metalrig string, layouts ...string) (*Registry, error) {
	endpoint, err := r.AddEndpoint(ctx, processName, "")
	if err != nil {
		return nil, fmt.Errorf("make the registry's namespace: %w", err)
	}
	reg := &Registry{endpoint: endpoint, pki: pki.Directory(filepath.Join(r.Dir(), "registry", "pki"))}
	if reg.ca, err = reg.pki.Authority("ca"); err != nil {
		return nil, fmt.Errorf("make the registry's certificates: %w", err)
	}
	serving := pki.Leaf{Name: processName, CommonName: Host, Names: []string{Host}, Addresses: []netip.Addr{endpoint.V4, endpoint.V6}}
	if err := reg.pki.Issue(reg.ca, serving); err != nil {
		return nil, fmt.Errorf("make the registry's certificates: %w", err)
	}
	process, err := reg.start(ctx, r, metalrig, layouts)
	if err != nil {
		return nil, fmt.Errorf("start the registry: %w", err)
	}
	return reg, reg.waitReady(ctx, process)
}

// start starts the process unless it runs with these layouts.
func (reg *Registry) start(ctx context.Context, r *rig.Rig, metalrig string, layouts []string) (*rig.Process, error) {
	wanted := strings.Join(layouts, "\n")
	note := filepath.Join(r.Dir(), "registry", "layouts")
	served, err := os.ReadFile(note)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	process, err := r.Process(processName)
	if err != nil && !errors.Is(err, rig.ErrNotFound) {
		return nil, err
	}
	if err == nil && process.Running() {
		if string(served) == wanted {
			return process, nil
		}
		if err := process.Stop(ctx, stopGrace); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(note, []byte(wanted), 0o644); err != nil {
		return nil, err
	}
	return r.StartProcess(ctx, reg.process(r, metalrig, layouts))
}

// Open finds the registry that was started in the rig.
func Open(r *rig.Rig) (*Registry, error) {
	endpoint, err := r.Endpoint(processName)
	if err != nil {
		return nil, fmt.Errorf("open the registry: %w", err)
	}
	reg := &Registry{endpoint: endpoint, pki: pki.Directory(filepath.Join(r.Dir(), "registry", "pki"))}
	reg.ca, err = reg.pki.Authority("ca")
	return reg, err
}

func (reg *Registry) process(r *rig.Rig, metalrig string, layouts []string) rig.ProcessSpec {
	spec := rig.ProcessSpec{
		Name: processName, Path: metalrig, Endpoint: reg.endpoint.Name,
		Argv: []string{
			"metalrig", "registry", "serve",
			"--store=" + filepath.Join(r.Dir(), "registry", "blobs"),
			fmt.Sprintf("--http=:%d", httpPort),
			fmt.Sprintf("--https=:%d", httpsPort),
			"--cert=" + reg.pki.Cert(processName),
			"--key=" + reg.pki.Key(processName),
		},
	}
	for _, layout := range layouts {
		spec.Argv = append(spec.Argv, "--layout="+layout)
	}
	return spec
}

func (reg *Registry) waitReady(ctx context.Context, process *rig.Process) error {
	ctx, cancel := context.WithTimeout(ctx, readyTimeout)
	defer cancel()
	client := &http.Client{Timeout: 5 * time.Second}
	for {
		last := ping(ctx, client, reg.Mirror()+"/v2/")
		if last == nil {
			return nil
		}
		if !process.Running() {
			return fmt.Errorf("start the registry: it has exited, see %s", process.LogPath)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the registry: %w (log: %s)", errors.Join(ctx.Err(), last), process.LogPath)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func ping(ctx context.Context, client *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	if err := response.Body.Close(); err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// Mirror is the URL of the open mirror.
func (reg *Registry) Mirror() string {
	return "http://" + netip.AddrPortFrom(reg.endpoint.V4, httpPort).String()
}

// Secure is the URL of the registry that asks for tokens.
func (reg *Registry) Secure() string {
	return "https://" + netip.AddrPortFrom(reg.endpoint.V4, httpsPort).String()
}

// WriteHosts writes a directory in containerd's certs.d layout that leads every
// registry to the mirror, and Host to the secure port with its authority.
func (reg *Registry) WriteHosts(dir string) error {
	mirror := fmt.Sprintf("server = %q\n\n[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n", reg.Mirror(), reg.Mirror())
	files := map[string]string{
		"_default/hosts.toml":        mirror,
		"docker.io/hosts.toml":       mirror,
		"registry.k8s.io/hosts.toml": mirror,
		Host + "/hosts.toml":         fmt.Sprintf("server = %q\nca = \"ca.crt\"\n", reg.Secure()),
		Host + "/ca.crt":             string(reg.ca.PEM()),
	}
	for name, content := range files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return fmt.Errorf("write registry hosts: %w", err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return fmt.Errorf("write registry hosts: %w", err)
		}
	}
	return nil
}
