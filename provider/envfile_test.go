package provider

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

func TestEnvFileIsReadAsAKubeletDoes(t *testing.T) {
	for file, want := range map[string]string{
		"KEY='value'":                           "value",
		"\n# note\n  \t KEY='a b' # note\n":     "a b",
		"OTHER='x'\nKEY='one\n two\n'":          "one\n two\n",
		"KEY='$HOME \\n \"q\"'":                 `$HOME \n "q"`,
		"KEY= 'value'":                          "",
		"OTHER='x'":                             "",
		"":                                      "",
		"KEY='first'\nKEY='second'\nnonsense":   "first",
		"OTHER='KEY='\nKEY='value'":             "value",
		"OTHER='\nKEY=inside\n'\nKEY='outside'": "outside",
	} {
		if got, err := envFileValue(strings.NewReader(file), "KEY"); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", file, got, err, want)
		}
	}
	for file, want := range map[string]string{
		"nonsense":                 "line 1: missing '='",
		"\n='v'":                   "line 2: empty variable name",
		"KEY ='v'":                 "line 1: whitespace before '='",
		"KEY=v":                    "line 1: value must be enclosed",
		"KEY=":                     "line 1: value must be enclosed",
		"KEY='v' more":             "line 1: unexpected content",
		"A='x'\nKEY='v\nmore\n":    "unclosed single quote",
		strings.Repeat("x", 1<<17): "token too long",
	} {
		if _, err := envFileValue(strings.NewReader(file), "KEY"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", file, err, want)
		}
	}
}

func FuzzEnvFile(f *testing.F) {
	f.Add("KEY='value'\n# x\nB='two\nlines'", "B")
	f.Fuzz(func(t *testing.T, file, key string) {
		value, err := envFileValue(strings.NewReader(file), key)
		if value != "" && (err != nil || strings.Contains(value, "'") || !strings.Contains(file, key+"='")) {
			t.Errorf("%q of %q: %q, %v", key, file, value, err)
		}
	})
}

// TestEnvFilesAreFilesOfTheirVolume: containers make what is there, and may make anything.
func TestEnvFilesAreFilesOfTheirVolume(t *testing.T) {
	dir := t.TempDir()
	volume := filepath.Join(dir, "volume")
	outside := filepath.Join(dir, "outside")
	for name, content := range map[string]string{outside: "KEY='secret'", volume + "/sub/env": "KEY='value'", volume + "/bad": "KEY"} {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"inside": "sub/env", "relative": "../outside", "absolute": outside} {
		if err := os.Symlink(target, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(volume, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(filepath.Join(volume, "bad"), maxEnvFile+1); err != nil {
		t.Fatal(err)
	}
	volumes := map[string]podplan.Volume{"v": {Path: volume}, "device": {Path: "/dev/null", Device: &podplan.BlockDevice{}}}
	for _, c := range []struct {
		ref         corev1.FileKeySelector
		value, fail string
	}{
		{corev1.FileKeySelector{VolumeName: "v", Path: "sub/env", Key: "KEY"}, "value", ""},
		{corev1.FileKeySelector{VolumeName: "v", Path: "inside", Key: "KEY"}, "value", ""},
		{corev1.FileKeySelector{VolumeName: "v", Path: "sub/env", Key: "NONE", Optional: ptr.To(true)}, "", ""},
		{corev1.FileKeySelector{VolumeName: "v", Path: "sub/env", Key: "NONE"}, "", `environment variable key "NONE" not found in file "sub/env"`},
		{corev1.FileKeySelector{VolumeName: "v", Path: "relative", Key: "KEY"}, "", "couldn't parse env file"},
		{corev1.FileKeySelector{VolumeName: "v", Path: "absolute", Key: "KEY"}, "", "couldn't parse env file"},
		{corev1.FileKeySelector{VolumeName: "v", Path: "fifo", Key: "KEY"}, "", "is not a file"},
		{corev1.FileKeySelector{VolumeName: "v", Path: "sub", Key: "KEY"}, "", "is not a file"},
		{corev1.FileKeySelector{VolumeName: "v", Path: "bad", Key: "KEY"}, "", "is larger than"},
		{corev1.FileKeySelector{VolumeName: "v", Path: "none", Key: "KEY", Optional: ptr.To(true)}, "", "couldn't parse env file"},
		{corev1.FileKeySelector{VolumeName: "other", Path: "env", Key: "KEY"}, "", `cannot find the volume "other"`},
		{corev1.FileKeySelector{VolumeName: "device", Path: "env", Key: "KEY"}, "", `cannot find the volume "device"`},
	} {
		value, ok, err := fileKey(volumes, &c.ref)
		if c.fail == "" && (err != nil || value != c.value || ok != (value != "")) || c.fail != "" && (err == nil || !strings.Contains(err.Error(), c.fail)) {
			t.Errorf("%+v: %q, %v, %v", c.ref, value, ok, err)
		}
	}
}
