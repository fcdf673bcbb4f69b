//go:build linux

package sandbox

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/paths"
)

func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	needMounts(t)
	layout := paths.Layout{Run: t.TempDir()}
	m := New(layout)
	first, err := m.Ensure(t.Context(), "u1", Options{Users: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, m, layout, "u1") })
	user := inode(t, first.Users.Path)
	for _, kind := range []string{"ipc", "net"} {
		if owner := ownerOf(t, layout.Namespace("u1", kind)); owner != user {
			t.Errorf("the %s namespace belongs to %d, not to the pod's user namespace %d", kind, owner, user)
		}
	}
	if got := shownOwner(t, first.Users.Path); got != first.Users.First {
		t.Errorf("its root is %#x of the host, not %#x", got, first.Users.First)
	}
	again, err := New(layout).Ensure(t.Context(), "u1", Options{Users: true})
	if err != nil || *again.Users != *first.Users || inode(t, again.Users.Path) != user {
		t.Errorf("an agent that starts anew finds %+v (%v), not %+v", again.Users, err, first.Users)
	}
	if err := unmount(layout.Namespace("u1", "net"), os.Remove); err != nil {
		t.Fatal(err)
	}
	again, err = m.Ensure(t.Context(), "u1", Options{Users: true})
	if err != nil {
		t.Fatal(err)
	}
	if ownerOf(t, layout.Namespace("u1", "net")) != inode(t, again.Users.Path) {
		t.Error("a half-made sandbox is completed by a network namespace of somebody else's")
	}
}

func TestIDsAreNeverShared(t *testing.T) {
	layout := paths.Layout{Run: t.TempDir()}
	m := New(layout)
	claim := func(m *Manager, uid string) uint32 {
		t.Helper()
		id, err := m.claim(uid)
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	a, b := claim(m, "a"), claim(m, "b")
	if a == b || a < firstID || a%IDsPerPod != 0 {
		t.Fatalf("claims of two pods: %#x, %#x", a, b)
	}
	after := New(layout) // the agent has started again
	if got := claim(after, "a"); got != a {
		t.Errorf("after a restart pod a has %#x, not %#x", got, a)
	}
	// It was killed right after it had made the claim.
	if err := os.Link(filepath.Join(layout.UserIDs(), "0"), filepath.Join(layout.UserIDs(), ".draft")); err != nil {
		t.Fatal(err)
	}
	if c := claim(after, "c"); c == a || c == b {
		t.Errorf("pod c has the IDs of another: %#x", c)
	}
	if got := claim(New(layout), "a"); got != a {
		t.Errorf("after another's claim pod a has %#x, not %#x", got, a)
	}
	for range 2 {
		if err := after.release("a"); err != nil {
			t.Fatal(err)
		}
	}
	if d := claim(m, "d"); d == a {
		t.Error("IDs are used again although others are free")
	}
}

func TestIDsRunOut(t *testing.T) {
	m := New(paths.Layout{Run: t.TempDir()})
	m.maxClaims = 3
	for _, uid := range []string{"a", "b", "c"} {
		if _, err := m.claim(uid); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.claim("d"); err == nil || !strings.Contains(err.Error(), "all 3 ranges are taken") {
		t.Errorf("a claim where none is free: %v", err)
	}
	if err := m.release("b"); err != nil {
		t.Fatal(err)
	}
	if id, err := m.claim("d"); err != nil || id != idOf(1) {
		t.Errorf("the one free claim: %#x, %v", id, err)
	}
}

func remove(t *testing.T, m *Manager, layout paths.Layout, uid string) {
	t.Helper()
	_ = unmount(layout.Namespace(uid, "net"), os.Remove)
	if err := m.Remove(t.Context(), uid); err != nil { //nolint:usetesting // the context of a clean-up is over
		t.Error(err)
	}
	for _, left := range []string{layout.Namespace(uid, "user"), filepath.Join(layout.UserIDs(), "0")} {
		if _, err := os.Lstat(left); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", left, err)
		}
	}
}

// ownerOf is the inode of the user namespace that a namespace belongs to.
func ownerOf(t *testing.T, path string) uint64 {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	owner, err := unix.IoctlRetInt(int(file.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(owner)
	var st unix.Stat_t
	if err := unix.Fstat(owner, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// shownOwner is who owns a file of the host's root where it is mounted with the IDs of a user
// namespace.
func shownOwner(t *testing.T, users string) uint32 {
	t.Helper()
	ns, err := os.Open(users)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	tree, err := unix.OpenTree(unix.AT_FDCWD, t.TempDir(), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(tree)
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, attr); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}
