package hostlogs

import (
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fakeJournal knows two services and tells its arguments and environment, one a line.
const fakeJournal = `#!/bin/sh
case "$1" in
--field=_SYSTEMD_UNIT) printf 'ssh.service\nvk-metal.service\nkubelet.service\ninit.scope\n'; exit ;;
--field=*) exit 1 ;;
esac
for a in "$@"; do echo "arg $a"; done
echo "secret $SECRET"
`

func logs(t *testing.T, query bool) http.Handler {
	dir, outside := t.TempDir(), t.TempDir()
	journalctl := filepath.Join(outside, "journalctl")
	for path, text := range map[string]string{
		filepath.Join(outside, "secret"):   "no business of yours",
		filepath.Join(dir, "syslog"):       "a line\n",
		filepath.Join(dir, "pods/a/0.log"): "a container's\n",
		filepath.Join(dir, "nginx.log"):    "an access\n",
		filepath.Join(dir, "db/db.log"):    "a row\n",
		journalctl:                         fakeJournal,
	} {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{
		"containers": filepath.Join(dir, "pods/a/0.log"), "relative": "pods/a/0.log", "loop": filepath.Join(dir, "loop"),
		"out": filepath.Join(outside, "secret"), "up": "../" + filepath.Base(outside) + "/secret", "trick": dir + "/../" + filepath.Base(outside) + "/secret",
	} {
		if err := os.Symlink(target, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("SECRET", "kept")
	return http.StripPrefix("/logs/", New(Options{Dir: dir, Query: query, Journalctl: journalctl, Units: map[string][]string{"kubelet": {"vk-metal"}}}))
}

func get(h http.Handler, path string) (int, string) {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestFiles(t *testing.T) {
	h := logs(t, false)
	for _, tc := range []struct {
		path string
		code int
		want string
	}{
		{"/logs/", 200, `<a href="pods/">pods/</a>`},
		{"/logs/syslog", 200, "a line\n"},
		{"/logs/pods/a/0.log", 200, "a container's\n"},
		{"/logs/containers", 200, "a container's\n"},
		{"/logs/relative", 200, "a container's\n"},
		{"/logs/?query=ssh", 200, `<a href="syslog">syslog</a>`}, // off: not looked at
		{"/logs/nothing", 404, ""},
		{"/logs/out", 500, ""},
		{"/logs/up", 500, ""},
		{"/logs/trick", 500, ""},
		{"/logs/loop", 500, ""},
		{"/logs/pipe", 403, ""},
		{"/logs/../../etc/passwd", 404, ""},
	} {
		code, body := get(h, tc.path)
		if code != tc.code || !strings.Contains(body, tc.want) || strings.Contains(body, "business") {
			t.Errorf("%s = %d %q, want %d %q", tc.path, code, body, tc.code, tc.want)
		}
	}
	if code, _ := get(http.StripPrefix("/logs/", New(Options{Dir: filepath.Join(t.TempDir(), "none")})), "/logs/x"); code != 404 {
		t.Errorf("without a directory: %d", code)
	}
}

func TestQuery(t *testing.T) {
	h := logs(t, true)
	const common = "arg --utc\narg --no-pager\narg --output=short-precise\n"
	for _, tc := range []struct {
		query string
		code  int
		want  string // all of it for 200
	}{
		{"", 200, ""},
		{"query=ssh", 200, common + "arg --unit=ssh.service\nsecret \n"},
		{"query=kubelet", 200, common + "arg --unit=kubelet.service\narg --unit=vk-metal.service\nsecret \n"},
		{
			"query=ssh&sinceTime=2026-01-02T03:04:05%2B01:00&untilTime=2026-01-03T00:00:00Z&tailLines=10&boot=-1&pattern=a+b|c", 200,
			common + "arg --since=2026-01-02 02:04:05 UTC\narg --until=2026-01-03 00:00:00 UTC\narg --lines=10\narg --unit=ssh.service\narg --grep=a b|c\narg --boot=-1\nsecret \n",
		},
		{"query=ssh&pattern=--file=/etc/shadow", 200, common + "arg --unit=ssh.service\narg --grep=--file=/etc/shadow\nsecret \n"},
		{"query=nginx", 200, "an access\n"},
		{"query=db", 200, "a row\n"},
		{"query=nobody", 200, "\nlog not found for nobody\n"},
		{"query=nginx&tailLines=1", 200, "\noptions present and query resolved to log files for [nginx]\ntry without specifying options\n"},
		{"query=ssh&query=nginx", 200, common + "arg --unit=ssh.service\nsecret \nan access\n"},
		{"query=/syslog", 200, "a line\n"},
		{`query=pods\a\0.log`, 200, "a container's\n"},
		{"query=", 400, "query cannot be empty"},
		{"query=ssh&sinceTime=today", 400, "invalid time format"},
		{"query=ssh&tailLines=x", 400, "tailLines"},
		{"tailLines=1", 406, "cannot be empty with options"},
		{"query=ssh&tailLines=-1", 406, "tailLines"},
		{"query=ssh&tailLines=100001", 406, "tailLines"},
		{"query=ssh&boot=1", 406, "must be less than 1"},
		{"query=ssh&pattern=(", 406, "pattern"},
		{"query=ssh&pattern=a%00b", 406, "pattern"},
		{"query=ssh&sinceTime=2026-01-02T00:00:00Z&untilTime=2026-01-01T00:00:00Z", 406, "must be after"},
		{"query=ssh.service", 406, "unsupported characters"},
		{"query=a%0a--file", 406, "unsupported characters"},
		{"query=" + strings.Repeat("x", 257), 406, "query"},
		{"query=a&query=b&query=c&query=d&query=e", 406, "Too many"},
		{"query=ssh&query=/syslog", 406, "cannot specify a file and service"},
		{"query=/syslog&query=/nginx.log", 406, "more than one file"},
		{"query=/syslog&tailLines=1", 406, "cannot specify file with options"},
		{"query=/../../etc/passwd", 406, "no such file"},
		{"query=/out", 406, "no such file"},
		{"query=/pods", 406, "no such file"},
	} {
		code, body := get(h, "/logs/?"+tc.query)
		ok := strings.Contains(body, tc.want)
		if tc.code == 200 && tc.query != "" {
			ok = body == tc.want
		}
		if code != tc.code || !ok {
			t.Errorf("%q = %d %q, want %d %q", tc.query, code, body, tc.code, tc.want)
		}
	}
	if code, _ := get(h, "/logs/syslog?query=ssh"); code != 406 {
		t.Errorf("a path in query mode: %d", code)
	}
}

// FuzzArguments: whatever a client asks for, journalctl gets options of ours with one value each,
// or nothing.
func FuzzArguments(f *testing.F) {
	f.Add("ssh", "2026-01-01T00:00:00Z", "5", "-1", "-x --file=y")
	f.Add("-D/etc", "now", "--no", "", "\n")
	ours := []string{"--utc", "--no-pager", "--output", "--since", "--until", "--lines", "--unit", "--grep", "--boot"}
	f.Fuzz(func(t *testing.T, service, since, tail, boot, pattern string) {
		q, err := parse(url.Values{"query": {service}, "sinceTime": {since}, "tailLines": {tail}, "boot": {boot}, "pattern": {pattern}})
		if err != nil || q.empty() || q.check() != nil {
			return
		}
		args := arguments(q.services, q.options)
		for _, arg := range args {
			name, value, _ := strings.Cut(arg, "=")
			if !slices.Contains(ours, name) || strings.ContainsRune(arg, 0) || name == "--unit" && strange.MatchString(value) {
				t.Errorf("argument %q", arg)
			}
		}
		if len(args) > len(ours) {
			t.Errorf("%d arguments: %q", len(args), args)
		}
	})
}
