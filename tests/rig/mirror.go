package rig

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// mirror is where the host gets Debian from. The rig asks the host and knows none itself.
type mirror struct {
	uri     string
	keyring string
}

// line is an apt source for a suite of the mirror.
func (m mirror) line(suite string) string {
	opts := ""
	if m.keyring != "" {
		opts = "[signed-by=" + m.keyring + "] "
	}
	return fmt.Sprintf("deb %s%s %s main\n", opts, m.uri, suite)
}

// aptSource is one entry of the host's apt configuration.
type aptSource struct {
	uris, suites, components []string
	signedBy                 string
}

// debianKeyring is where Debian's package debian-archive-keyring puts its keys.
const debianKeyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// findMirror picks the first Debian archive of the apt configuration in dir.
func findMirror(dir string) (mirror, error) {
	sources, err := readAptSources(dir)
	if err != nil {
		return mirror{}, err
	}
	for _, s := range sources {
		if !s.isDebianArchive() {
			continue
		}
		m := mirror{uri: strings.TrimSuffix(s.uris[0], "/"), keyring: s.signedBy}
		if m.keyring == "" || !filepath.IsAbs(m.keyring) {
			m.keyring = debianKeyring
		}
		if strings.HasPrefix(m.uri, "mirror+file:") {
			return m.resolve()
		}
		return m, nil
	}
	return mirror{}, fmt.Errorf("find a Debian mirror in %s: no source with a Debian suite and component main", dir)
}

// isDebianArchive tells Debian's own suites from their updates and from third parties'.
func (s aptSource) isDebianArchive() bool {
	known := []string{"bookworm", "trixie", "forky", "sid", "stable", "testing", "unstable", "bullseye"}
	return len(s.uris) > 0 && slices.Contains(s.components, "main") &&
		slices.ContainsFunc(s.suites, func(suite string) bool { return slices.Contains(known, suite) })
}

// resolve reads a mirror list, which only apt understands, for debootstrap.
func (m mirror) resolve() (mirror, error) {
	path := strings.TrimPrefix(m.uri, "mirror+file:")
	path = "/" + strings.TrimLeft(path, "/")
	b, err := os.ReadFile(path)
	if err != nil {
		return m, fmt.Errorf("read mirror list: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 0 && !strings.HasPrefix(f[0], "#") {
			m.uri = strings.TrimSuffix(f[0], "/")
			return m, nil
		}
	}
	return m, fmt.Errorf("read mirror list %s: it is empty", path)
}

// readAptSources reads both forms of apt's source lists.
func readAptSources(dir string) ([]aptSource, error) {
	lists, err1 := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.list"))
	deb822, err2 := filepath.Glob(filepath.Join(dir, "sources.list.d", "*.sources"))
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("list apt sources: %w", err)
	}
	var all []aptSource
	for _, path := range append([]string{filepath.Join(dir, "sources.list")}, append(lists, deb822...)...) {
		b, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read apt sources: %w", err)
		}
		if strings.HasSuffix(path, ".sources") {
			all = append(all, parseDeb822(string(b))...)
		} else {
			all = append(all, parseSourceList(string(b))...)
		}
	}
	return all, nil
}

// parseSourceList reads "deb [options] uri suite components" lines.
func parseSourceList(text string) []aptSource {
	var all []aptSource
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), "deb ")
		if !ok {
			continue
		}
		var s aptSource
		rest = strings.TrimSpace(rest)
		if strings.HasPrefix(rest, "[") {
			var opts string
			opts, rest, _ = strings.Cut(rest[1:], "]")
			for _, o := range strings.Fields(opts) {
				if v, ok := strings.CutPrefix(o, "signed-by="); ok {
					s.signedBy = v
				}
			}
		}
		if f := strings.Fields(rest); len(f) >= 3 {
			s.uris, s.suites, s.components = f[:1], f[1:2], f[2:]
			all = append(all, s)
		}
	}
	return all
}

// parseDeb822 reads stanzas of "Key: values"; continued lines belong to their key.
func parseDeb822(text string) []aptSource {
	var all []aptSource
	fields := map[string]string{}
	flush := func() {
		enabled := !strings.EqualFold(strings.TrimSpace(fields["enabled"]), "no")
		if enabled && slices.Contains(strings.Fields(fields["types"]), "deb") {
			all = append(all, aptSource{
				uris: strings.Fields(fields["uris"]), suites: strings.Fields(fields["suites"]),
				components: strings.Fields(fields["components"]), signedBy: strings.TrimSpace(fields["signed-by"]),
			})
		}
		fields = map[string]string{}
	}
	key := ""
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, " \t\r\n")
		switch k, v, ok := strings.Cut(line, ":"); {
		case line == "":
			flush()
		case strings.HasPrefix(line, "#"):
		case line[0] == ' ' || line[0] == '\t':
			fields[key] += " " + line
		case ok:
			key = strings.ToLower(k)
			fields[key] = v
		}
	}
	flush()
	return all
}
