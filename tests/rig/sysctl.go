package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// guardedSysctls are kernel-wide settings that a node agent, its package or the rig is
// known to change; machines share the kernel with the host.
var guardedSysctls = []string{
	"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops",
	"kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes", "kernel/pid_max", "kernel/threads-max",
	"fs/inotify/max_user_instances", "fs/inotify/max_user_watches",
	"fs/pipe-user-pages-soft", "fs/pipe-user-pages-hard", "fs/pipe-max-size",
	"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding", "net/netfilter/nf_conntrack_max",
}

// readSysctls notes the guarded settings that this kernel has.
func readSysctls() map[string]string {
	values := map[string]string{}
	for _, key := range guardedSysctls {
		if b, err := os.ReadFile("/proc/sys/" + key); err == nil {
			values[key] = strings.TrimSpace(string(b))
		}
	}
	return values
}

// inotifyInstances is how many root may have on a host with machines: all of them share
// root's allowance, and the kernel's 128 do for about six.
const inotifyInstances = 8192

// makeRoom raises what several systems on one kernel use up. The last Down puts it back.
func makeRoom() error {
	const path = "/proc/sys/fs/inotify/max_user_instances"
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read limit of inotify: %w", err)
	}
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n >= inotifyInstances {
		return nil
	}
	if err := os.WriteFile(path, []byte(strconv.Itoa(inotifyInstances)), 0); err != nil {
		return fmt.Errorf("raise limit of inotify: %w", err)
	}
	return nil
}

// restoreSysctls puts back what differs from the values.
func restoreSysctls(values map[string]string) error {
	now := readSysctls()
	for key, v := range values {
		if now[key] == v {
			continue
		}
		if err := os.WriteFile("/proc/sys/"+key, []byte(v), 0); err != nil {
			return fmt.Errorf("restore sysctl %s: %w", key, err)
		}
	}
	return nil
}

// guest is a rig's entry, CacheDir()/rigs/<id>, among the rigs of this host: the first
// one notes the settings of the kernel, the others take them over, the last puts them back.
type guest struct {
	Dir     string            `json:"dir"`
	BootID  string            `json:"bootID"`
	Sysctls map[string]string `json:"sysctls"`
}

// logRig appends the rig's id to the file $VK_METAL_RIG_LOG, by which a script can look for
// what is left of rigs.
func logRig(id string) error {
	path := os.Getenv("VK_METAL_RIG_LOG")
	if path == "" {
		return nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("log rig %s: %w", id, err)
	}
	_, err = fmt.Fprintln(f, id)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("log rig %s: %w", id, err)
	}
	return nil
}

// joinHost notes the rig and returns the settings that the host had without any rig.
func joinHost(dir, id string) (map[string]string, error) {
	if err := logRig(id); err != nil {
		return nil, err
	}
	unlock, err := lockGuests()
	if err != nil {
		return nil, err
	}
	defer unlock()
	mine := guest{Dir: dir, BootID: hostBootID()}
	for _, other := range guests(id) {
		mine.Sysctls = other.Sysctls
	}
	if mine.Sysctls == nil {
		mine.Sysctls = readSysctls()
	}
	b, err := json.Marshal(mine)
	if err == nil {
		err = writeFileSync(filepath.Join(guestDir(), id), append(b, '\n'), 0o644)
	}
	if err != nil {
		return nil, fmt.Errorf("note rig %s: %w", id, err)
	}
	return mine.Sysctls, nil
}

// leaveHost ends the rig's entry and, unless others are up, restores the settings.
func leaveHost(_ context.Context, s *state) error {
	unlock, err := lockGuests()
	if err != nil {
		return err
	}
	defer unlock()
	if len(guests(s.ID)) == 0 && s.BootID == hostBootID() {
		if err := restoreSysctls(s.Sysctls); err != nil {
			return err
		}
	}
	halfWritten, _ := filepath.Glob(filepath.Join(guestDir(), ".vk*"))
	for _, path := range halfWritten {
		_ = os.Remove(path) // of a rig that was killed; nobody writes while we hold the lock
	}
	if err := os.Remove(filepath.Join(guestDir(), s.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget rig %s: %w", s.ID, err)
	}
	return nil
}

func guestDir() string { return filepath.Join(CacheDir(), "rigs") }

// lockGuests locks the list of rigs; nothing else is locked while it is held.
func lockGuests() (unlock func(), err error) {
	if err := os.MkdirAll(guestDir(), 0o755); err != nil {
		return nil, fmt.Errorf("list rigs: %w", err)
	}
	return lockPath(filepath.Join(CacheDir(), "rigs.lock"))
}

// guests lists the rigs of this boot but one, and forgets those whose directory has gone.
func guests(but string) []guest {
	var found []guest
	files, _ := filepath.Glob(filepath.Join(guestDir(), "vk*"))
	for _, file := range files {
		id, g := filepath.Base(file), guest{}
		b, err := os.ReadFile(file)
		if err != nil || json.Unmarshal(b, &g) != nil || id == but {
			continue
		}
		if s, err := readState(g.Dir); err != nil || s.ID != id || g.BootID != hostBootID() {
			_ = os.Remove(file) // a rig that was deleted by hand, or of an earlier boot
			continue
		}
		found = append(found, g)
	}
	return found
}
