package artifacts

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The versions that programs are stamped with are those that are built.
func TestVersionsAreThoseOfTheModules(t *testing.T) {
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	for module, version := range map[string]string{"tests": KubernetesVersion, "tests/kubeproxy": NewKubeProxyVersion} {
		data, err := os.ReadFile(filepath.Join(root, module, "go.mod"))
		if err != nil {
			t.Fatal(err)
		}
		if want := "\tk8s.io/kubernetes " + version; !strings.Contains(string(data), want) {
			t.Errorf("%s/go.mod does not ask for %q", module, strings.TrimSpace(want))
		}
	}
}

func TestVersionFlags(t *testing.T) {
	got := strings.Join(versionFlags("v1.36.3"), " ")
	for _, want := range []string{"version.gitVersion=v1.36.3", "version.gitMajor=1", "version.gitMinor=36"} {
		if strings.Count(got, want) != 2 {
			t.Errorf("%q is not twice in %q", want, got)
		}
	}
}
