package images

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// endpoint is one server that may be asked for a registry's content.
type endpoint struct {
	scheme, host string
	path         string // of the API: "/v2", or what override_path says
	resolve      bool   // may answer tags
	pull         bool   // may serve content by digest
	mirror       bool   // is not the registry's own server
	skipVerify   bool
	ca           []string    // PEM files, absolute
	client       [][2]string // certificate and key files, absolute; key may be empty
	header       http.Header
	dialTimeout  time.Duration
}

func (e endpoint) String() string { return e.scheme + "://" + e.host + e.path }

// hostTable is the settings of one host in hosts.toml; the file's top level has the same for
// the server itself.
type hostTable struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`
	Client       any            `toml:"client"`
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"`
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
}

type hostsFile struct {
	Server string               `toml:"server"`
	Host   map[string]hostTable `toml:"host"`
}

// endpoints returns the servers of a registry in the order in which they are asked: mirrors
// first, the registry itself last. The files are read anew each time, so edits need no restart.
func endpoints(hostsDir, registry string) ([]endpoint, error) {
	for _, dir := range hostDirs(hostsDir, registry) {
		data, err := os.ReadFile(filepath.Join(dir, "hosts.toml"))
		if errors.Is(err, fs.ErrNotExist) {
			if eps, ok := certsOnly(dir, registry); ok {
				return eps, nil
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read registry hosts: %w", err)
		}
		eps, err := parseHosts(data, dir, registry)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Join(dir, "hosts.toml"), err)
		}
		return eps, nil
	}
	return []endpoint{defaultEndpoint(registry)}, nil
}

// hostDirs are containerd's names for a registry's directory, best first. The registry comes
// from a parsed reference: no slash, no "..".
func hostDirs(hostsDir, registry string) []string {
	if hostsDir == "" {
		return nil
	}
	var dirs []string
	if host, port := splitPort(registry); port != "" {
		dirs = append(dirs, filepath.Join(hostsDir, host+"_"+port+"_"))
	}
	return append(dirs, filepath.Join(hostsDir, registry), filepath.Join(hostsDir, "_default"))
}

// defaultEndpoint is the registry itself: https, but plain http for a loopback address.
func defaultEndpoint(registry string) endpoint {
	e := endpoint{scheme: "https", host: registry, path: "/v2", resolve: true, pull: true}
	if registry == "docker.io" {
		e.host = "registry-1.docker.io"
	}
	host, port := splitPort(registry)
	if ip := net.ParseIP(strings.Trim(host, "[]")); (host == "localhost" || ip != nil && ip.IsLoopback()) && port != "443" {
		e.scheme = "http"
	}
	return e
}

// parseHosts reads one hosts.toml.
func parseHosts(data []byte, dir, registry string) ([]endpoint, error) {
	var file hostsFile
	var top hostTable
	if err := errors.Join(toml.Unmarshal(data, &file), toml.Unmarshal(data, &top)); err != nil {
		return nil, err
	}
	var eps []endpoint
	for _, server := range hostOrder(data, file.Host) {
		e, err := newEndpoint(server, file.Host[server], dir)
		if err != nil {
			return nil, fmt.Errorf("host %q: %w", server, err)
		}
		e.mirror = e.host != defaultEndpoint(registry).host
		eps = append(eps, e)
	}
	own := defaultEndpoint(registry)
	server := own.scheme + "://" + own.host
	if file.Server != "" {
		server = file.Server
	}
	e, err := newEndpoint(server, top, dir)
	if err != nil {
		return nil, fmt.Errorf("server %q: %w", server, err)
	}
	e.mirror = e.host != own.host
	return append(eps, e), nil
}

// hostOrder is the order of the [host."…"] tables in the file, which a map does not keep.
func hostOrder(data []byte, hosts map[string]hostTable) []string {
	var order []string
	add := func(name string) {
		if _, ok := hosts[name]; ok && !slices.Contains(order, name) {
			order = append(order, name)
		}
	}
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		it := p.Expression().Key()
		if !it.Next() || string(it.Node().Data) != "host" || !it.Next() {
			continue
		}
		add(string(it.Node().Data))
	}
	rest := make([]string, 0, len(hosts))
	for name := range hosts {
		rest = append(rest, name)
	}
	slices.Sort(rest)
	for _, name := range rest {
		add(name)
	}
	return order
}

func newEndpoint(server string, t hostTable, dir string) (endpoint, error) {
	if !strings.HasPrefix(server, "http://") && !strings.HasPrefix(server, "https://") {
		server = defaultEndpoint(server).scheme + "://" + server
	}
	u, err := url.Parse(server)
	if err != nil {
		return endpoint{}, fmt.Errorf("not a URL: %w", err)
	}
	if u.Host == "" {
		return endpoint{}, errors.New("no host in URL")
	}
	e := endpoint{scheme: u.Scheme, host: u.Host, path: strings.TrimRight(path.Clean("/"+u.Path), "/"), skipVerify: t.SkipVerify}
	if !t.OverridePath && !strings.HasSuffix(e.path, "/v2") {
		e.path += "/v2"
	}
	if err := e.setCapabilities(t.Capabilities); err != nil {
		return e, err
	}
	if e.ca, err = fileList(t.CA, dir); err != nil {
		return e, fmt.Errorf("ca: %w", err)
	}
	if e.client, err = clientPairs(t.Client, dir); err != nil {
		return e, fmt.Errorf("client: %w", err)
	}
	if e.header, err = headers(t.Header); err != nil {
		return e, fmt.Errorf("header: %w", err)
	}
	if t.DialTimeout != "" {
		if e.dialTimeout, err = time.ParseDuration(t.DialTimeout); err != nil {
			return e, fmt.Errorf("dial_timeout: %w", err)
		}
	}
	return e, nil
}

func (e *endpoint) setCapabilities(names []string) error {
	if len(names) == 0 {
		e.pull, e.resolve = true, true
		return nil
	}
	for _, name := range names {
		switch strings.ToLower(name) {
		case "pull":
			e.pull = true
		case "resolve":
			e.resolve = true
		case "push", "referrers":
		default:
			return fmt.Errorf("unknown capability %q", name)
		}
	}
	return nil
}

// certsOnly is Docker's older form: *.crt, *.cert and *.key files without a hosts.toml.
func certsOnly(dir, registry string) ([]endpoint, bool) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, false
	}
	e := defaultEndpoint(registry)
	for _, entry := range entries {
		file := filepath.Join(dir, entry.Name())
		switch filepath.Ext(file) {
		case ".crt":
			e.ca = append(e.ca, file)
		case ".cert":
			e.client = append(e.client, [2]string{file, strings.TrimSuffix(file, ".cert") + ".key"})
		}
	}
	return []endpoint{e}, true
}
