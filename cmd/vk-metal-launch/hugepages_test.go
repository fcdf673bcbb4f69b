//go:build linux

package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

func TestOwn(t *testing.T) {
	for table, want := range map[string]string{
		"0::/a.slice/b.service\n": "/a.slice/b.service",
		"9:name=systemd:/a.slice/c.service\n4:memory:/x\n0::/a.slice/b\n": "/a.slice/b",
		"9:name=systemd:/a.slice/c.service\n4:memory:/x\n":                "/a.slice/c.service",
	} {
		if got, err := own(table); err != nil || got != want {
			t.Errorf("%q: %q, %v", table, got, err)
		}
	}
	if got, err := own("4:memory:/x\n"); err == nil {
		t.Errorf("found %q", got)
	}
}

// fakeGroups has files where the kernel would have them.
func fakeGroups(t *testing.T, files ...string) groups {
	t.Helper()
	g := groups{t.TempDir()}
	for _, file := range files {
		path := filepath.Join(g.mount, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

func (g groups) check(t *testing.T, want map[string]string) {
	t.Helper()
	for file, text := range want {
		if data, err := os.ReadFile(filepath.Join(g.mount, file)); err != nil || string(data) != text {
			t.Errorf("%s: %q, %v; want %q", file, data, err, text)
		}
	}
}

var fourOfEight = []launchspec.HugePages{{Size: "2MB", Container: 4 << 20, Pod: 8 << 20}}

func TestLimitHugePagesV2(t *testing.T) {
	for _, root := range []string{"", "unified/"} {
		g := fakeGroups(t, root+"cgroup.controllers", root+"cgroup.subtree_control", root+"k.slice/cgroup.subtree_control", root+"k.slice/p.slice/cgroup.subtree_control",
			root+"k.slice/p.slice/hugetlb.2MB.max", root+"k.slice/p.slice/hugetlb.2MB.rsvd.max",
			root+"k.slice/p.slice/c.service/hugetlb.2MB.max", root+"k.slice/p.slice/c.service/cgroup.subtree_control")
		if err := os.WriteFile(filepath.Join(g.mount, root, "cgroup.controllers"), []byte("cpu hugetlb pids\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := g.limit("/k.slice/p.slice/c.service", 7, fourOfEight); err != nil {
			t.Fatal(err)
		}
		g.check(t, map[string]string{
			root + "cgroup.subtree_control": "+hugetlb", root + "k.slice/cgroup.subtree_control": "+hugetlb",
			root + "k.slice/p.slice/cgroup.subtree_control": "+hugetlb", root + "k.slice/p.slice/c.service/cgroup.subtree_control": "",
			root + "k.slice/p.slice/hugetlb.2MB.max": "8388608", root + "k.slice/p.slice/hugetlb.2MB.rsvd.max": "8388608",
			root + "k.slice/p.slice/c.service/hugetlb.2MB.max": "4194304",
		})
	}
}

func TestLimitHugePagesV1(t *testing.T) {
	g := fakeGroups(t, "hugetlb/p.slice/hugetlb.2MB.limit_in_bytes", "hugetlb/p.slice/c.service/hugetlb.2MB.limit_in_bytes", "hugetlb/p.slice/c.service/cgroup.procs")
	if err := g.limit("/p.slice/c.service", 7, fourOfEight); err != nil {
		t.Fatal(err)
	}
	g.check(t, map[string]string{
		"hugetlb/p.slice/hugetlb.2MB.limit_in_bytes": "8388608", "hugetlb/p.slice/c.service/hugetlb.2MB.limit_in_bytes": "4194304",
		"hugetlb/p.slice/c.service/cgroup.procs": "7",
	})
}

// TestLeaveHugePages removes empty groups and no other; here files stand for processes.
func TestLeaveHugePages(t *testing.T) {
	g := fakeGroups(t, "hugetlb/k.slice/stays")
	if err := os.MkdirAll(filepath.Join(g.mount, "hugetlb/k.slice/p.slice/c.service"), 0o755); err != nil {
		t.Fatal(err)
	}
	g.leave("/k.slice/p.slice/c.service")
	if entries, err := os.ReadDir(filepath.Join(g.mount, "hugetlb/k.slice")); err != nil || len(entries) != 1 {
		t.Errorf("left: %v, %v", entries, err)
	}
	g.leave("/not/there")
}

func TestHostWithoutTheController(t *testing.T) {
	if err := fakeGroups(t, "cgroup.controllers").limit("/p.slice/c.service", 7, fourOfEight); err != nil {
		t.Error(err)
	}
}
