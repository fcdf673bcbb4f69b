package conformance

import (
	"slices"
	"strings"
	"testing"
)

func TestConformanceListIsWhole(t *testing.T) {
	t.Parallel()
	names, err := Conformance()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if !strings.Contains(name, Tag) || SIG(name) == "other" {
			t.Errorf("%q is no conformance test of a SIG", name)
		}
	}
	if _, err := ReadSkips(names); err != nil {
		t.Errorf("the project's skip file: %v", err)
	}
}

func TestParseList(t *testing.T) {
	t.Parallel()
	names, err := parseList(strings.NewReader("The following spec names can be used:\n" +
		"    a/b.go:12: [sig-node] Pods: should [x] [Conformance]\n" +
		"    a/b.go:13: [sig-apps] twice\n    a/c.go:1: [sig-apps] twice\n\n"))
	if want := []string{"[sig-apps] twice", "[sig-node] Pods: should [x] [Conformance]"}; err != nil || !slices.Equal(names, want) {
		t.Errorf("got %q, %v, want %q", names, err, want)
	}
	if _, err := parseList(strings.NewReader("flag provided but not defined")); err == nil {
		t.Error("a list without tests is no error")
	}
}

func TestChoose(t *testing.T) {
	t.Parallel()
	conformance := []string{"[sig-apps] c", "[sig-node] a"}
	available := []string{"[sig-apps] c", "[sig-node] a", "[sig-node] b (x)"}
	for _, test := range []struct {
		name      string
		selection Selection
		want      []string
	}{
		{"everything", Selection{}, conformance},
		{"a test outside of conformance", Selection{Focus: `b \(x\)$`}, []string{"[sig-node] b (x)"}},
		{"focus and skip", Selection{Focus: "sig-node", Skip: "a$"}, []string{"[sig-node] b (x)"}},
		{"skip alone", Selection{Skip: "apps"}, []string{"[sig-node] a"}},
		{"nothing", Selection{Focus: "no such"}, nil},
		{"focus and the short list", Selection{Short: true, Focus: "sig-node"}, nil},
		{"a suite without the tests of the short list", Selection{Short: true}, nil},
		{"not an expression", Selection{Focus: "("}, nil},
	} {
		got, err := test.selection.Choose(available, conformance)
		if !slices.Equal(got, test.want) || (err == nil) != (test.want != nil) {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
	if _, err := (Selection{}).Choose(available[1:], conformance); err == nil {
		t.Error("a suite that lacks a conformance test is no error")
	}
}

func TestParseSkips(t *testing.T) {
	t.Parallel()
	conformance := []string{"[sig-node] a", "[sig-node] b # 2"}
	skips, err := parseSkips("# comment\n\n [sig-node] a # needs # two clouds\n", conformance)
	if err != nil || skips["[sig-node] a"] != "needs # two clouds" {
		t.Errorf("got %v, %v", skips, err)
	}
	for _, text := range []string{"[sig-node] a", "[sig-node] a # ", "[sig-node] c # why", "[sig-node] a # x\n[sig-node] a # y"} {
		if _, err := parseSkips(text, conformance); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

func TestShortListIsOfConformance(t *testing.T) {
	t.Parallel()
	all, err := Conformance()
	if err != nil {
		t.Fatal(err)
	}
	names, err := short(all)
	if err != nil || len(names) == 0 {
		t.Fatalf("%d tests, %v", len(names), err)
	}
	chosen, err := Selection{Short: true, Skip: "sig-apps"}.Choose(all, all)
	if err != nil || len(chosen) == 0 || len(chosen) >= len(names) {
		t.Errorf("%d of %d tests, %v", len(chosen), len(names), err)
	}
	for _, sig := range []string{"apps", "api-machinery", "auth", "cli", "network", "node", "scheduling", "storage"} {
		if !slices.ContainsFunc(names, func(name string) bool { return SIG(name) == sig }) {
			t.Errorf("no test of sig-%s", sig)
		}
	}
}

func TestParseShort(t *testing.T) {
	t.Parallel()
	available := []string{"[sig-node] a", "[sig-node] b"}
	names, err := parseShort("# comment\n\n [sig-node] b\n[sig-node] a\n", available)
	if err != nil || !slices.Equal(names, available) {
		t.Errorf("got %q, %v", names, err)
	}
	for _, text := range []string{"[sig-node] c", "[sig-node] a\n[sig-node] a"} {
		if _, err := parseShort(text, available); err == nil {
			t.Errorf("%q is no error", text)
		}
	}
}

func TestFocusesMatchExactly(t *testing.T) {
	t.Parallel()
	var tests []string
	for i := range 5000 {
		tests = append(tests, "[sig-node] test (number) "+strings.Repeat("x", i%90))
	}
	all := focuses(tests)
	if len(all) < 2 {
		t.Errorf("%d arguments for %d names", len(all), len(tests))
	}
	for _, argument := range all {
		if len(argument) >= 128<<10 {
			t.Errorf("an argument of %d bytes", len(argument))
		}
	}
	if got := focuses([]string{"[a] b."}); !slices.Equal(got, []string{`^Kubernetes e2e suite (?:\[a\] b\.)$`}) {
		t.Errorf("got %q", got)
	}
}
