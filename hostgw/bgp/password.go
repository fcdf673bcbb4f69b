package bgp

import (
	"fmt"
	"os"
	"strings"
	"syscall"
)

// readPassword reads the key of a session; "" names none. The file must be root's alone.
func readPassword(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	f, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", fmt.Errorf("read password: %w", err)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0 || !ok || stat.Uid != 0 {
		return "", fmt.Errorf("read password: %s must be a regular file of root that nobody else can read (chown root; chmod 600)", path)
	}
	const longest = 80 // TCP_MD5SIG_MAXKEYLEN
	buf := make([]byte, longest+2)
	n, err := f.Read(buf)
	if err != nil {
		return "", fmt.Errorf("read password from %s: %w", path, err)
	}
	key := strings.TrimRight(string(buf[:n]), "\r\n")
	if key == "" || len(key) > longest {
		return "", fmt.Errorf("read password: %s must hold 1 to %d bytes", path, longest)
	}
	return key, nil
}
