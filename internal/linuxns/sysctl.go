package linuxns

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Sysctl is one setting below net, written with dots or slashes: net.ipv4.ip_forward,
// net/ipv4/conf/eth0.100/rp_filter. As with sysctl(8), the first separator decides.
type Sysctl struct{ Key, Value string }

// SysctlPath is the file of a net sysctl; an error for any key that is not below net
// or that could name another file.
func SysctlPath(key string) (string, error) {
	p := key
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		p = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	if !strings.HasPrefix(p, "net/") || !filepath.IsLocal(p) || filepath.Clean(p) != p || strings.ContainsRune(p, 0) {
		return "", fmt.Errorf("sysctl %q is not a setting of a network namespace", key)
	}
	return filepath.Join("/proc/sys", p), nil
}

// GetSysctl reads a sysctl of the calling thread's namespace, blanks made single spaces.
func GetSysctl(key string) (string, error) {
	path, err := SysctlPath(key)
	if err != nil {
		return "", err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read sysctl %s: %w", key, err)
	}
	return strings.Join(strings.Fields(string(b)), " "), nil
}

// SetSysctl writes a sysctl of the calling thread's namespace (use it inside Do) and
// says what it was before.
func SetSysctl(s Sysctl) (old string, err error) {
	if old, err = GetSysctl(s.Key); err != nil {
		return "", err
	}
	if old == s.Value {
		return old, nil
	}
	path, err := SysctlPath(s.Key)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(path, []byte(s.Value), 0); err != nil {
		return old, fmt.Errorf("set sysctl %s to %q: %w", s.Key, s.Value, err)
	}
	return old, nil
}
