package conformance

import (
	"bufio"
	_ "embed" // for the list
	"fmt"
	"slices"
	"strings"
)

//go:embed skip.txt
var skipFile string

// Skips are tests that are not run, each with its reason.
type Skips map[string]string

// ReadSkips reads the skip file of the project.
func ReadSkips(conformance []string) (Skips, error) { return parseSkips(skipFile, conformance) }

// parseSkips reads lines of the form "name # reason"; empty lines and lines that
// begin with # say nothing. A name that is no conformance test, a name twice and a
// missing reason are errors: the file must not rot.
func parseSkips(text string, conformance []string) (Skips, error) {
	skips := Skips{}
	lines := bufio.NewScanner(strings.NewReader(text))
	for number := 1; lines.Scan(); number++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, reason, _ := strings.Cut(line, " # ")
		name, reason = strings.TrimSpace(name), strings.TrimSpace(reason)
		_, twice := skips[name]
		switch {
		case reason == "":
			return nil, fmt.Errorf("skip file, line %d: no reason given", number)
		case twice:
			return nil, fmt.Errorf("skip file, line %d: %q is there twice", number, name)
		case !slices.Contains(conformance, name):
			return nil, fmt.Errorf("skip file, line %d: there is no conformance test %q", number, name)
		}
		skips[name] = reason
	}
	return skips, lines.Err()
}
