package conformance

import (
	_ "embed" // for the list
	"fmt"
	"slices"
	"strings"
)

//go:embed short.txt
var shortFile string

// short are the tests of the short list, sorted. That the suite lacks one, or that one
// is there twice, is an error: the list must not rot.
func short(available []string) ([]string, error) { return parseShort(shortFile, available) }

// parseShort reads a name per line; empty lines and lines that begin with # say nothing.
func parseShort(text string, available []string) ([]string, error) {
	var names []string
	for line := range strings.Lines(text) {
		name := strings.TrimSpace(line)
		switch {
		case name == "" || strings.HasPrefix(name, "#"):
			continue
		case !slices.Contains(available, name):
			return nil, fmt.Errorf("short list: the suite has no test %q", name)
		case slices.Contains(names, name):
			return nil, fmt.Errorf("short list: %q is there twice", name)
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}
