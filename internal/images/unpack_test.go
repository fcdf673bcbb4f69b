package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// unpackLayers unpacks tars bottom first into directories; the result is topmost first.
func unpackLayers(t *testing.T, limits Limits, tars ...[]byte) ([]string, error) {
	t.Helper()
	needRoot(t)
	base := storeDir(t)
	var dirs []string
	for i, data := range tars {
		d := filepath.Join(base, fmt.Sprint(i))
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
		dirs = append([]string{d}, dirs...)
		u, err := newUnpacker(dirs, limits)
		if err != nil {
			t.Fatal(err)
		}
		err = u.apply(context.Background(), bytes.NewReader(data))
		u.close()
		if err != nil {
			return dirs, err
		}
	}
	return dirs, nil
}

// merged mounts the layers as the launcher would and describes what is there.
func merged(t *testing.T, dirs []string) map[string]string {
	t.Helper()
	target, up := t.TempDir(), storeDir(t)
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(up, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", strings.Join(dirs, ":"), up, up)
	if err := unix.Mount("overlay", target, "overlay", 0, options); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	defer func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	return describe(t, target)
}

// describe maps each path to "type mode uid:gid content".
func describe(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, p)
		s := fmt.Sprintf("%s %o %d:%d", kindName(st), st.Mode&0o7777, st.Uid, st.Gid)
		switch {
		case isRegular(st):
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += " " + string(data)
		case isSymlink(st):
			target, _ := os.Readlink(p)
			s += " " + target
		case st.Rdev != 0:
			s += fmt.Sprintf(" %d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
		}
		out[rel] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func kindName(st unix.Stat_t) string {
	return map[uint32]string{
		unix.S_IFDIR: "dir", unix.S_IFREG: "file", unix.S_IFLNK: "link",
		unix.S_IFCHR: "char", unix.S_IFBLK: "block", unix.S_IFIFO: "fifo",
	}[st.Mode&unix.S_IFMT]
}

func wantTree(t *testing.T, got, want map[string]string) {
	t.Helper()
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if got[p] != want[p] {
			t.Errorf("%s: %q, want %q", p, got[p], want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			t.Errorf("%s: %q, want nothing", p, got[p])
		}
	}
}

func TestMergedView(t *testing.T) {
	owned := func(e entry, uid, gid int) entry { e.Uid, e.Gid = uid, gid; return e }
	moded := func(e entry, mode int64) entry { e.Mode = mode; return e }
	base := []entry{
		dir("./", 0o755), dir("etc/", 0o755), file("etc/a", "A"), file("etc/b", "B"),
		owned(dir("tmp/", 0o1777), 5, 6), dir("usr/lib/", 0o755), symlink("lib", "usr/lib"),
	}
	baseTree := func(change map[string]string) map[string]string {
		m := map[string]string{
			".": "dir 755 0:0", "etc": "dir 755 0:0", "etc/a": "file 644 0:0 A", "etc/b": "file 644 0:0 B",
			"tmp": "dir 1777 5:6", "usr": "dir 755 0:0", "usr/lib": "dir 755 0:0", "lib": "link 777 0:0 usr/lib",
		}
		for k, v := range change {
			if v == "" {
				delete(m, k)
			} else {
				m[k] = v
			}
		}
		return m
	}
	cases := []struct {
		name   string
		layers [][]entry
		want   map[string]string
	}{
		{"base", nil, baseTree(nil)},
		{"whiteout of a file", [][]entry{{file("etc/.wh.a", "")}}, baseTree(map[string]string{"etc/a": ""})},
		{"whiteout of a directory", [][]entry{{file(".wh.etc", "")}}, baseTree(map[string]string{"etc": "", "etc/a": "", "etc/b": ""})},
		{"whiteout of nothing", [][]entry{{file("etc/.wh.none", "")}}, baseTree(nil)},
		{
			"opaque directory",
			[][]entry{{dir("etc/", 0o700), file("etc/.wh..wh..opq", ""), file("etc/c", "C")}},
			baseTree(map[string]string{"etc": "dir 700 0:0", "etc/a": "", "etc/b": "", "etc/c": "file 644 0:0 C"}),
		},
		{
			"opaque mark after the files",
			[][]entry{{file("etc/c", "C"), file("etc/.wh..wh..opq", "")}},
			baseTree(map[string]string{"etc/a": "", "etc/b": "", "etc/c": "file 644 0:0 C"}),
		},
		{
			"whiteout, then the same directory",
			[][]entry{{file(".wh.etc", ""), dir("etc/", 0o711), file("etc/c", "C")}},
			baseTree(map[string]string{"etc": "dir 711 0:0", "etc/a": "", "etc/b": "", "etc/c": "file 644 0:0 C"}),
		},
		{
			"the same directory, then whiteout",
			[][]entry{{dir("etc/", 0o711), file("etc/c", "C"), file(".wh.etc", "")}},
			baseTree(map[string]string{"etc": "dir 711 0:0", "etc/a": "", "etc/b": "", "etc/c": "file 644 0:0 C"}),
		},
		{
			"whiteout, then an implied directory",
			[][]entry{{file(".wh.etc", ""), file("etc/c", "C")}},
			baseTree(map[string]string{"etc/a": "", "etc/b": "", "etc/c": "file 644 0:0 C"}),
		},
		{
			"whiteout and the file itself",
			[][]entry{{file("etc/.wh.a", ""), file("etc/a", "new")}},
			baseTree(map[string]string{"etc/a": "file 644 0:0 new"}),
		},
		{
			"file, then its whiteout in the same layer",
			[][]entry{{file("etc/a", "new"), file("etc/.wh.a", "")}},
			baseTree(map[string]string{"etc/a": "file 644 0:0 new"}),
		},
		{"implied parent keeps what lower says", [][]entry{{file("tmp/x", "X")}}, baseTree(map[string]string{"tmp/x": "file 644 0:0 X"})},
		{"through a symlink of a lower layer", [][]entry{{file("lib/x.so", "X")}}, baseTree(map[string]string{"usr/lib/x.so": "file 644 0:0 X"})},
		{
			"directory in place of a symlink",
			[][]entry{{dir("lib/", 0o755), file("lib/x", "X")}},
			baseTree(map[string]string{"lib": "dir 755 0:0", "lib/x": "file 644 0:0 X"}),
		},
		{
			"file in place of a directory",
			[][]entry{{file("etc", "flat")}},
			baseTree(map[string]string{"etc": "file 644 0:0 flat", "etc/a": "", "etc/b": ""}),
		},
		{"hard link to a lower file", [][]entry{{hardlink("etc/h", "etc/a")}}, baseTree(map[string]string{"etc/h": "file 644 0:0 A"})},
		{
			"three layers: delete, then make again",
			[][]entry{{file(".wh.etc", "")}, {file("etc/n", "N")}},
			baseTree(map[string]string{"etc/a": "", "etc/b": "", "etc/n": "file 644 0:0 N"}),
		},
		{"setuid, owner, devices", [][]entry{{
			moded(owned(file("su", "S"), 1, 2), 0o6755),
			{Header: tar.Header{Name: "null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
			{Header: tar.Header{Name: "pipe", Typeflag: tar.TypeFifo, Mode: 0o600}},
		}}, baseTree(map[string]string{"su": "file 6755 1:2 S", "null": "char 666 0:0 1:3", "pipe": "fifo 600 0:0"})},
		{
			"dots that stay inside, absolute names",
			[][]entry{{file("etc/../etc/./d", "D"), file("/etc/e", "E")}},
			baseTree(map[string]string{"etc/d": "file 644 0:0 D", "etc/e": "file 644 0:0 E"}),
		},
		{
			"duplicates: the last one wins",
			[][]entry{{file("etc/d", "1"), symlink("etc/d", "x"), file("etc/d", "3")}},
			baseTree(map[string]string{"etc/d": "file 644 0:0 3"}),
		},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			tars := [][]byte{tarOf(t, base...)}
			for _, l := range c.layers {
				tars = append(tars, tarOf(t, l...))
			}
			dirs, err := unpackLayers(t, Limits{}, tars...)
			if err != nil {
				t.Fatal(err)
			}
			wantTree(t, merged(t, dirs), c.want)
		})
	}
}

func TestMetadata(t *testing.T) {
	capability := "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	f := file("bin/ping", "P")
	f.PAXRecords = map[string]string{
		paxXattr + "security.capability":      capability,
		paxXattr + "user.note":                "n",
		paxXattr + "trusted.overlay.opaque":   "y",
		paxXattr + "user.overlay.redirect":    "/x",
		paxXattr + "trusted.overlay.redirect": "/etc",
	}
	dirs, err := unpackLayers(t, Limits{}, tarOf(t, dir("bin/", 0o755), f, hardlink("bin/ping6", "bin/ping"), symlink("s", "bin/ping")))
	if err != nil {
		t.Fatal(err)
	}
	p := filepath.Join(dirs[0], "bin/ping")
	fd, err := unix.Open(p, unix.O_RDONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	names, err := xattrNames(fd)
	slices.Sort(names)
	if err != nil || !slices.Equal(names, []string{"security.capability", "user.note"}) {
		t.Errorf("attributes %q %v", names, err)
	}
	if v, err := xattr(fd, "security.capability"); err != nil || string(v) != capability {
		t.Errorf("capability %q %v", v, err)
	}
	var a, b, s, d unix.Stat_t
	for path, st := range map[string]*unix.Stat_t{"bin/ping": &a, "bin/ping6": &b, "s": &s, "bin": &d} {
		if err := unix.Lstat(filepath.Join(dirs[0], path), st); err != nil {
			t.Fatal(err)
		}
		if st.Mtim.Sec != testTime.Unix() {
			t.Errorf("%s has time %d, want %d", path, st.Mtim.Sec, testTime.Unix())
		}
	}
	if a.Ino != b.Ino || a.Nlink != 2 {
		t.Errorf("hard link: inodes %d %d, %d links", a.Ino, b.Ino, a.Nlink)
	}
}

// canary is a directory beside the layer; nothing in it may change.
func TestHostileLayers(t *testing.T) {
	outside := t.TempDir()
	secret := filepath.Join(outside, "secret")
	if err := os.WriteFile(secret, []byte("keep"), 0o600); err != nil {
		t.Fatal(err)
	}
	var before unix.Stat_t
	if err := unix.Stat(outside, &before); err != nil {
		t.Fatal(err)
	}
	char00 := entry{Header: tar.Header{Name: "w", Typeflag: tar.TypeChar}}
	bigOwner := file("x", "")
	bigOwner.Uid = 1 << 33
	cases := []struct {
		name    string
		entries []entry
		err     string // empty: must succeed and stay inside
	}{
		{"dots", []entry{file("../secret", "evil")}, "leaves the root"},
		{"dots below", []entry{dir("a/", 0o755), file("a/../../secret", "evil")}, "leaves the root"},
		{"dots alone", []entry{dir("..", 0o777)}, "leaves the root"},
		{"absolute symlink, then below it", []entry{symlink("out", outside), file("out/secret", "evil")}, ""},
		{"relative symlink, then below it", []entry{symlink("out", strings.Repeat("../", 40)+outside), file("out/secret", "evil")}, ""},
		{"file over a symlink", []entry{symlink("s", secret), file("s", "evil")}, ""},
		{"hard link to the outside", []entry{hardlink("h", "../secret")}, "leaves the root"},
		{"hard link, absolute", []entry{hardlink("h", secret), file("h", "evil")}, "does not exist"},
		{"hard link through a symlink", []entry{symlink("out", outside), hardlink("h", "out/secret")}, "does not exist"},
		{"hard link to a symlink, then written", []entry{symlink("s", secret), hardlink("h", "s"), file("h", "evil")}, ""},
		{"symlink loop", []entry{symlink("a", "b"), symlink("b", "a"), file("a/x", "evil")}, "too many symlinks"},
		{"chained symlinks", []entry{symlink("a", "/"), symlink("b", "a/.."), file("b/"+strings.TrimPrefix(secret, "/"), "evil")}, ""},
		{"symlink in place of a used directory", []entry{dir("d/", 0o755), file("d/x", "1"), symlink("d", outside), file("d/secret", "evil")}, ""},
		{"modes through a symlink", []entry{symlink("out", outside), dir("out/", 0o4777), symlink("s", secret), hardlink("s2", "s"), file("s2", "evil")}, ""},
		{"whiteout through a symlink", []entry{symlink("out", outside), file("out/.wh.secret", "")}, ""},
		{"opaque through a symlink", []entry{symlink("out", outside), file("out/.wh..wh..opq", "")}, ""},
		{"whiteout of dots", []entry{file(".wh...", "")}, "whiteout of no name"},
		{"whiteout of nothing", []entry{file(".wh.", "")}, "whiteout of no name"},
		{"whiteout device", []entry{char00}, "whiteout"},
		{"file as parent", []entry{file("f", ""), file("f/x", "")}, "not a directory"},
		{"root as a symlink", []entry{symlink(".", outside)}, "not a directory"},
		{"owner out of range", []entry{bigOwner}, "out of range"},
		{"component too long", []entry{file(strings.Repeat("n", 300), "")}, "file name too long"},
		{"name too long", []entry{file(strings.Repeat("n/", 3000)+"n", "")}, "longer than"},
		{"link to itself", []entry{file("f", "x"), hardlink("f", "f")}, "does not exist"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := unpackLayers(t, Limits{}, tarOf(t, c.entries...))
			if c.err == "" && err != nil {
				t.Errorf("error %v", err)
			}
			if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if data, err := os.ReadFile(secret); err != nil || string(data) != "keep" {
				t.Fatalf("outside was touched: %q %v", data, err)
			}
			var st unix.Stat_t
			if err := unix.Stat(secret, &st); err != nil || st.Nlink != 1 || st.Mode&0o7777 != 0o600 {
				t.Fatalf("outside was linked to, or changed: %d links, mode %o, %v", st.Nlink, st.Mode, err)
			}
			if err := unix.Stat(outside, &st); err != nil || st.Mode != before.Mode { // CVE-2021-32760
				t.Fatalf("the mode outside became %o: %v", st.Mode, err)
			}
			if entries, _ := os.ReadDir(outside); len(entries) != 1 {
				t.Fatalf("outside has new entries: %v", entries)
			}
		})
	}
}

func TestLimits(t *testing.T) {
	big := file("big", strings.Repeat("x", 5000))
	cases := []struct {
		name    string
		limits  Limits
		entries []entry
		err     string
	}{
		{"bytes", Limits{LayerBytes: 4999}, []entry{big}, "more than the limit of 4999 bytes"},
		{"bytes in sum", Limits{LayerBytes: 9999}, []entry{big, {Header: tar.Header{Name: "b2", Typeflag: tar.TypeReg, Size: 5000}, body: big.body}}, "9999 bytes"},
		{"entries", Limits{LayerEntries: 2}, []entry{dir("a", 0o755), dir("b", 0o755), dir("c", 0o755)}, "limit of 2 entries"},
		{"within", Limits{LayerBytes: 20000, LayerEntries: 1}, []entry{big}, ""},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, err := unpackLayers(t, c.limits, tarOf(t, c.entries...))
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
		})
	}
}

func FuzzCleanName(f *testing.F) {
	for _, s := range []string{"", ".", "/", "a/../..", "../x", "a//b", "/a", "..a/b", "a/..", "\x00"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, name string) {
		clean, err := cleanName(name)
		if err != nil {
			return
		}
		if clean != "" && !filepath.IsLocal(clean) || strings.ContainsRune(clean, 0) {
			t.Errorf("cleanName(%q) = %q", name, clean)
		}
	})
}
