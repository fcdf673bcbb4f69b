package conformance

import (
	"slices"
	"strings"
	"testing"
)

func TestStream(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"[sig-node] a [Conformance]": true, "[sig-node] b": true}
	for _, test := range []struct {
		name, text string
		want       []string
	}{
		{
			"passed, with labels behind the name", delimiter + "\n• [1.250 seconds]\n[sig-node] a [Conformance] [sig-node, Conformance]\nfile.go:1\n",
			[]string{"[sig-node] a [Conformance] passed"},
		},
		{
			"failed and panicked", delimiter + "\n• [FAILED] [3.000 seconds]\n[sig-node] b\nx\n" + delimiter + "\n" + delimiter + "\n•! [PANICKED] [3.000 seconds]\n[sig-node] b\n",
			[]string{"[sig-node] b failed", "[sig-node] b failed"},
		},
		{"interrupted and skipped are to be run again", delimiter + "\nI [INTERRUPTED] [3.000 seconds]\n[sig-node] b\n" + delimiter + "\nS [SKIPPED] [0.100 seconds]\n[sig-node] b\n", nil},
		{
			"failed in its own or in a set-up node", delimiter + "\n• [FAILED] [3.000 seconds]\n[sig-node] [It] a [Conformance] [sig-node]\nx\n" + delimiter +
				"\n• [FAILED] [3.000 seconds]\n[sig-node] [BeforeEach] b [sig-node]\n" + delimiter + "\n• [FAILED] [3.000 seconds]\nTOP-LEVEL [DeferCleanup (Each)] [sig-node] b\n",
			[]string{"[sig-node] a [Conformance] failed", "[sig-node] b failed", "[sig-node] b failed"},
		},
		{
			"in series", delimiter + "\n[sig-node] b\nfile.go:1\n  STEP: x\n• [FAILED] [2.000 seconds]\n[sig-node] b\n" + delimiter + "\n[sig-node] a [Conformance]\nx\n• [2.000 seconds]\n" + delimiter + "\n",
			[]string{"[sig-node] b failed", "[sig-node] a [Conformance] passed"},
		},
		{
			"a test that prints what looks like a result", delimiter + "\n• [1.000 seconds]\n[sig-node] b\n  • [1.000 seconds]\n  [sig-node] a [Conformance]\n• [1.000 seconds]\n[sig-node] a [Conformance]\n",
			[]string{"[sig-node] b passed"},
		},
		{"suite nodes and unknown names", delimiter + "\n[SynchronizedBeforeSuite] PASSED [1.000 seconds]\n[SynchronizedBeforeSuite]\n" + delimiter + "\n• [1.000 seconds]\n[sig-node] unknown\n", nil},
		{"a line that is too long", delimiter + "\n" + strings.Repeat("x", 3*longestLine) + "\n" + delimiter + "\n• [1.000 seconds]\n[sig-node] b", []string{"[sig-node] b passed"}},
	} {
		var got []string
		reader := stream{known: known, found: func(result Result) { got = append(got, result.Name+" "+string(result.State)) }}
		if err := reader.read(strings.NewReader(test.text)); err != nil || !slices.Equal(got, test.want) {
			t.Errorf("%s: got %q, %v, want %q", test.name, got, err, test.want)
		}
	}
}

func FuzzStream(f *testing.F) {
	f.Add(delimiter + "\n• [FAILED] [3.000 seconds]\n[sig-node] b\n")
	f.Fuzz(func(t *testing.T, text string) {
		reader := stream{known: map[string]bool{"[sig-node] b": true}, found: func(result Result) {
			if result.Name != "[sig-node] b" || result.State != Passed && result.State != Failed {
				t.Errorf("found %+v", result)
			}
		}}
		if err := reader.read(strings.NewReader(text)); err != nil {
			t.Error(err)
		}
	})
}
