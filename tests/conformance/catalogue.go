package conformance

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"k8s.io/kubernetes/test/conformance/testdata"
	"sigs.k8s.io/yaml"
)

// Total is how many tests conformance to Kubernetes 1.35 asks for.
const Total = 441

// Tag is in the name of every conformance test.
const Tag = "[Conformance]"

// conformanceList is upstream's list of the tests that make conformance.
const conformanceList = "test/conformance/testdata/conformance.yaml"

// Conformance returns upstream's list of conformance tests, sorted.
func Conformance() ([]string, error) {
	data, err := testdata.GetConformanceTestdataFS().ReadTestFile(conformanceList)
	if err != nil {
		return nil, fmt.Errorf("read the list of conformance tests: %w", err)
	}
	var entries []struct {
		Codename string `json:"codename"`
	}
	if err := yaml.Unmarshal(data, &entries); err != nil {
		return nil, fmt.Errorf("read the list of conformance tests: %w", err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Codename)
	}
	slices.Sort(names)
	if names = slices.Compact(names); len(names) != Total {
		return nil, fmt.Errorf("upstream lists %d conformance tests, not %d: another version of Kubernetes?", len(names), Total)
	}
	return names, nil
}

// Available asks the suite for the names of all tests that it has, sorted. Names that
// several tests share are there once.
func Available(ctx context.Context, e2e string) ([]string, error) {
	cmd := exec.CommandContext(ctx, e2e, "--list-tests")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the suite's tests: %w: %s", err, stderr.String())
	}
	return parseList(strings.NewReader(string(out)))
}

// listed is a line of --list-tests: source, line number, name.
var listed = regexp.MustCompile(`^    \S+:\d+: (\[.*)$`)

func parseList(r io.Reader) ([]string, error) {
	var names []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if match := listed.FindStringSubmatch(lines.Text()); match != nil {
			names = append(names, match[1])
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list the suite's tests: %w", err)
	}
	if len(names) == 0 {
		return nil, errors.New("list the suite's tests: it names none")
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Selection says which tests to run. Expressions match anywhere in the full name.
type Selection struct {
	// Short is the list of tests that CI runs; Focus must be empty then.
	Short bool `json:"short,omitempty"`
	// Focus chooses among all of upstream's tests; "" is all conformance tests.
	Focus string `json:"focus,omitempty"`
	// Skip leaves out of what Focus chose.
	Skip string `json:"skip,omitempty"`
	// Gates are the control plane's feature gates, as in "A=true,B=true"; "" are the defaults.
	Gates string `json:"gates,omitempty"`
}

// Full says whether the selection is the whole of conformance.
func (s Selection) Full() bool { return s == Selection{} }

// String says it in a report.
func (s Selection) String() string {
	text := "all of conformance"
	switch {
	case s.Short:
		text = "the short list"
	case s.Focus != "":
		text = "`" + strings.ReplaceAll(s.Focus, "|", "\\|") + "`"
	}
	if s.Skip != "" {
		text += " without `" + strings.ReplaceAll(s.Skip, "|", "\\|") + "`"
	}
	if s.Gates != "" {
		text += " with `" + s.Gates + "`"
	}
	return text
}

// Choose returns the chosen tests, sorted. That nothing is chosen, or that the suite
// lacks a conformance test, is an error.
func (s Selection) Choose(available, conformance []string) ([]string, error) {
	for _, name := range conformance {
		if _, found := slices.BinarySearch(available, name); !found {
			return nil, fmt.Errorf("the suite lacks the conformance test %q", name)
		}
	}
	names := conformance
	switch {
	case s.Short && s.Focus != "":
		return nil, errors.New("FOCUS and the short list exclude each other")
	case s.Short:
		var err error
		if names, err = short(available); err != nil {
			return nil, err
		}
	case s.Focus != "":
		focus, err := regexp.Compile(s.Focus)
		if err != nil {
			return nil, fmt.Errorf("read FOCUS: %w", err)
		}
		names = filter(available, focus.MatchString)
	}
	if s.Skip != "" {
		skip, err := regexp.Compile(s.Skip)
		if err != nil {
			return nil, fmt.Errorf("read SKIP: %w", err)
		}
		names = filter(names, func(name string) bool { return !skip.MatchString(name) })
	}
	if len(names) == 0 {
		return nil, errors.New("FOCUS and SKIP leave no test to run")
	}
	return names, nil
}

func filter(names []string, keep func(string) bool) []string {
	var kept []string
	for _, name := range names {
		if keep(name) {
			kept = append(kept, name)
		}
	}
	return kept
}

// SIG is the special interest group that owns the test: the first label of its name.
func SIG(name string) string {
	label, _, found := strings.Cut(strings.TrimPrefix(name, "["), "]")
	if !found || !strings.HasPrefix(label, "sig-") {
		return "other"
	}
	return strings.TrimPrefix(label, "sig-")
}
