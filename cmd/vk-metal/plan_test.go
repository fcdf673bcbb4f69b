package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

var update = flag.Bool("update", false, "write the golden files")

// TestGoldenPlans holds whole plans: a change of what is started, and how, shows in them.
func TestGoldenPlans(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	// No such directories: a plan looks at none.
	layout := paths.Layout{Run: "/golden/run", Lib: "/golden/lib", Log: "/golden/log", Etc: "/golden/etc", Kubelet: "/golden/kubelet"}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			pod, err := parsePod(file, data)
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			if err := printPlan(t.Context(), layout, goldenLabels(file), pod, &out); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if line, got, wanted, differ := firstDifference(out.String(), string(want)); differ {
				t.Errorf("%s:%d: plan has %q, want %q (go test ./cmd/vk-metal -run Golden -update writes it anew)", golden, line, got, wanted)
			}
		})
	}
}

// goldenLabels are those of a policy such as Debian's, for the pods whose file names SELinux.
func goldenLabels(file string) *podplan.PodSELinux {
	if !strings.HasPrefix(filepath.Base(file), "selinux") {
		return nil
	}
	return &podplan.PodSELinux{
		Process: "system_u:system_r:container_t:s0", File: "system_u:object_r:container_file_t:s0", Level: "s0:c12,c345",
	}
}

func firstDifference(a, b string) (line int, inA, inB string, differ bool) {
	as, bs := strings.Split(a, "\n"), strings.Split(b, "\n")
	for i := range max(len(as), len(bs)) {
		inA, inB = "", ""
		if i < len(as) {
			inA = as[i]
		}
		if i < len(bs) {
			inB = bs[i]
		}
		if inA != inB {
			return i + 1, inA, inB, true
		}
	}
	return 0, "", "", false
}
