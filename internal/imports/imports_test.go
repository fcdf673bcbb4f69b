package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/vk-metal/vk-metal"

// ban forbids packages below From to depend on packages below any of To. Paths without
// a dot in the first element are ours or the standard library's.
type ban struct {
	from   []string
	to     []string
	except []string // packages below From that may
	deep   bool     // dependencies of dependencies as well
	why    string
}

var bans = []ban{
	{
		from: []string{"systemd"}, to: []string{"netns", "hostgw", "probes", "provider", "internal/images", "internal/volumes", "internal/objects", "internal/logs", "k8s.io"},
		why: "units and processes know no pods: they can be tested and used without a cluster",
	},
	{
		from: []string{"netns"}, to: []string{"systemd", "hostgw", "probes", "provider"},
		why: "a pod's network is the kernel's; who starts containers in it is not its business",
	},
	{
		from: []string{"hostgw"}, to: []string{"systemd", "netns", "probes", "provider"},
		why: "routes come from Nodes alone",
	},
	{
		from: []string{"probes"}, to: []string{"systemd", "netns", "hostgw", "provider", "k8s.io/client-go"},
		why: "a probe needs an address and an Execer; results are read by the pod worker",
	},
	{
		from: []string{"internal/services"}, to: []string{"systemd", "netns", "hostgw", "probes"},
		why: "Services come from the API alone; a pod is what comes in by a link of the group that the options name",
	},
	{
		from: []string{"internal/policy"}, to: []string{"systemd", "netns", "hostgw", "probes", "internal/services"},
		why: "policies come from the API alone; a pod is its addresses",
	},
	{
		from: []string{"internal"}, to: []string{"provider", "cmd"},
		why: "imports point down",
	},
	{
		from: []string{"provider/podplan", "provider/podstatus"},
		to: []string{
			"os", "os/exec", "net/http", "io/ioutil", "syscall", "k8s.io/client-go",
			"internal/images", "internal/volumes", "internal/objects", "internal/logs",
		},
		except: []string{},
		why:    "the plan and the status are pure: what they say is a value that can be printed and compared",
	},
	{
		from: []string{"internal/pressure"}, to: []string{"os", "net", "syscall", "golang.org/x/sys", "k8s.io/client-go", module},
		why: "who has to go is a value of figures and a time: it can be tested without a full disk",
	},
	{
		from: []string{"internal/launchspec", "internal/paths", "internal/logs/logstream"},
		to:   []string{module, "k8s.io", "golang.org/x", "github.com"}, except: []string{}, deep: true,
		why: "contracts between processes: standard library only, shared by the smallest of them",
	},
	{
		from: []string{"internal/logwriter", "cmd/vk-metal-log", "cmd/vk-metal-launch"},
		to:   []string{"k8s.io", "github.com/godbus", "github.com/coreos", "net/http", "encoding/gob"}, deep: true,
		why: "one of them runs all the time, the other before every container: small and quick",
	},
}

// pkg is what `go list -json` says of a package.
type pkg struct {
	ImportPath    string
	Imports, Deps []string
}

func TestImports(t *testing.T) {
	for _, p := range list(t) {
		for _, b := range bans {
			if !below(short(p.ImportPath), b.from) || below(short(p.ImportPath), b.except) {
				continue
			}
			imports := p.Imports
			if b.deep {
				imports = p.Deps
			}
			for _, imported := range imports {
				if below(short(imported), b.from) || !below(short(imported), b.to) && !below(imported, b.to) {
					continue
				}
				t.Errorf("%s must not import %s: %s", short(p.ImportPath), short(imported), b.why)
			}
		}
	}
}

// TestNoKubernetes: k8s.io/kubernetes is no library; only the tests' module has it.
func TestNoKubernetes(t *testing.T) {
	for _, p := range list(t) {
		for _, dep := range p.Deps {
			if below(dep, []string{"k8s.io/kubernetes"}) {
				t.Errorf("%s depends on %s", short(p.ImportPath), dep)
			}
		}
	}
}

func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps", module+"/...")
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var packages []pkg
	for decoder := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := decoder.Decode(&p); errors.Is(err, io.EOF) {
			return packages
		} else if err != nil {
			t.Fatal(err)
		}
		packages = append(packages, p)
	}
}

func short(path string) string { return strings.TrimPrefix(path, module+"/") }

func below(path string, dirs []string) bool {
	for _, dir := range dirs {
		if path == dir || strings.HasPrefix(path, dir+"/") {
			return true
		}
	}
	return false
}
