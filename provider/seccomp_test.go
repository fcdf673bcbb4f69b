package provider

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestReadSeccomp(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file("good", `{"defaultAction": "SCMP_ACT_ALLOW"}`): "",
		file("bad", `{"defaultAction": "nonsense"}`):        `"nonsense" is not an action`,
		file("huge", strings.Repeat(" ", 1<<20+1)):          "it has more than 1048576 bytes",
		filepath.Join(dir, "none"):                          "no such file or directory",
		dir:                                                 "not a regular file",
		fifo:                                                "not a regular file",
	} {
		_, err := readSeccomp(path)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}
