//go:build linux

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// user is who the workload runs as.
type user struct {
	UID, GID uint32
	Groups   []uint32
	Home     string
}

func (u *user) process() *launchspec.Process {
	return &launchspec.Process{UID: u.UID, GID: u.GID, Groups: u.Groups, Home: u.Home}
}

// maxAccountFile bounds /etc/passwd and /etc/group, which come from the image.
const maxAccountFile = 4 << 20

// resolveUser looks the spec's user up in the container's own account files. It runs
// after the pivot: "/" is the container's.
func resolveUser(spec *launchspec.Spec) (*user, error) {
	passwd, err := readAccounts("/etc/passwd")
	if err != nil {
		return nil, err
	}
	group, err := readAccounts("/etc/group")
	if err != nil {
		return nil, err
	}
	return lookupUser(spec.User, passwd, group)
}

// readAccounts returns "" for a missing file; anything but a regular file is an error
// rather than a hang.
func readAccounts(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if missing(err) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("open %s in the container: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return "", fmt.Errorf("read %s in the container: not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(file, maxAccountFile+1))
	if err != nil {
		return "", fmt.Errorf("read %s in the container: %w", name, err)
	}
	if len(data) > maxAccountFile {
		return "", fmt.Errorf("read %s in the container: it is larger than %d bytes", name, maxAccountFile)
	}
	return string(data), nil
}

// account is a line of passwd(5).
type account struct {
	name     string
	uid, gid uint32
	home     string
}

func findAccount(passwd string, match func(account) bool) (account, bool) {
	for line := range strings.Lines(passwd) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) < 6 {
			continue
		}
		uid, err1 := parseID(fields[2])
		gid, err2 := parseID(fields[3])
		a := account{name: fields[0], uid: uid, gid: gid, home: fields[5]}
		if err1 == nil && err2 == nil && match(a) {
			return a, true
		}
	}
	return account{}, false
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err == nil && n == 1<<32-1 {
		err = errors.New("4294967295 means no user")
	}
	return uint32(n), err
}

// lookupUser applies the rules of containerd: a number or else a name, a group after a colon, the
// passwd entry's group when none is named, group 0 without an entry. A number is never taken for a
// name: the image's passwd could make root of "1000", which runAsNonRoot lets pass.
func lookupUser(want launchspec.User, passwd, group string) (*user, error) {
	name, groupName, hasGroup := strings.Cut(want.Name, ":")
	entry, found, err := lookupAccount(want.UID, name, passwd)
	if err != nil {
		return nil, err
	}
	u := &user{UID: entry.uid, GID: entry.gid, Home: "/"}
	if found && entry.home != "" {
		u.Home = entry.home
	}
	switch {
	case want.GID != nil:
		u.GID = *want.GID
	case hasGroup && groupName != "" && want.UID == nil:
		if u.GID, err = lookupGroup(groupName, group); err != nil {
			return nil, err
		}
	}
	u.Groups = append(slices.Clone(want.Groups), u.GID) // as containerd since CVE-2023-25173
	if found && !want.StrictGroups {
		u.Groups = append(u.Groups, memberships(entry.name, group)...)
	}
	slices.Sort(u.Groups)
	u.Groups = slices.Compact(u.Groups)
	return u, nil
}

func lookupAccount(uid *uint32, name, passwd string) (account, bool, error) {
	if uid == nil && name != "" {
		n, err := parseID(name)
		if err != nil {
			if a, ok := findAccount(passwd, func(a account) bool { return a.name == name }); ok {
				return a, true, nil
			}
			return account{}, false, fmt.Errorf("unable to find user %s: no matching entries in passwd file", name)
		}
		uid = &n
	}
	if uid == nil {
		uid = new(uint32)
	}
	if a, ok := findAccount(passwd, func(a account) bool { return a.uid == *uid }); ok {
		return a, true, nil
	}
	return account{uid: *uid}, false, nil
}

func lookupGroup(name, group string) (uint32, error) {
	if gid, err := parseID(name); err == nil {
		return gid, nil
	}
	for line := range strings.Lines(group) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) < 3 || fields[0] != name {
			continue
		}
		if gid, err := parseID(fields[2]); err == nil {
			return gid, nil
		}
	}
	return 0, fmt.Errorf("unable to find group %s: no matching entries in group file", name)
}

// memberships are the groups that list the user as a member.
func memberships(name, group string) []uint32 {
	var out []uint32
	for line := range strings.Lines(group) {
		fields := strings.Split(strings.TrimRight(line, "\n"), ":")
		if len(fields) < 4 || !slices.Contains(strings.Split(fields[3], ","), name) {
			continue
		}
		if gid, err := parseID(fields[2]); err == nil {
			out = append(out, gid)
		}
	}
	return out
}
