package services

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// rival finds a kube-proxy that works on the network namespace of the process self (a PID
// or "self") and returns its PID: two proxies would translate each other's connections.
func rival(proc, self string) (pid int, found bool) {
	own, err := os.Readlink(filepath.Join(proc, self, "ns/net"))
	if err != nil {
		return 0, false
	}
	entries, _ := os.ReadDir(proc)
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join(proc, entry.Name())
		if ns, err := os.Readlink(filepath.Join(dir, "ns/net")); err != nil || ns != own {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if isKubeProxy(strings.Split(string(cmdline), "\x00")) {
			return pid, true
		}
	}
	return 0, false
}

func isKubeProxy(argv []string) bool {
	switch filepath.Base(argv[0]) {
	case "kube-proxy":
		return true
	case "hyperkube":
		return len(argv) > 1 && (argv[1] == "proxy" || argv[1] == "kube-proxy")
	}
	return false
}
