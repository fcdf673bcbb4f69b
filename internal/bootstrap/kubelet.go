package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/coreos/go-systemd/v22/dbus"
)

// KubeletCheck looks for a kubelet on this server. Two agents would fight for the same
// pods, cgroups and Node.
type KubeletCheck struct {
	// Proc is /proc.
	Proc string
	// UnitState returns a systemd unit's ActiveState, "" when it cannot be known.
	UnitState func(ctx context.Context, unit string) string
	// Ports that must be free.
	Ports []int
}

// NewKubeletCheck checks this machine.
func NewKubeletCheck(ports ...int) KubeletCheck {
	return KubeletCheck{Proc: "/proc", UnitState: unitState, Ports: ports}
}

// Run returns every sign of a kubelet as one error that says what to do.
func (k KubeletCheck) Run(ctx context.Context) error {
	var found []error
	if pids := k.processes(); len(pids) > 0 {
		found = append(found, fmt.Errorf("a kubelet runs on this server (process %s)", strings.Join(pids, ", ")))
	}
	switch state := k.UnitState(ctx, "kubelet.service"); state {
	case "active", "activating", "reloading", "deactivating":
		found = append(found, fmt.Errorf("kubelet.service is %s", state))
	}
	if len(found) > 0 {
		found = append(found, errors.New("vk-metal replaces the kubelet and cannot run beside it: systemctl disable --now kubelet.service"))
		return errors.Join(found...)
	}
	for _, port := range k.Ports {
		if inUse(port) {
			found = append(found, fmt.Errorf("port %d is in use: another node agent may run here (ss -ltnp 'sport = :%d' shows it)", port, port))
		}
	}
	return errors.Join(found...)
}

// processes lists the PIDs whose program is named kubelet. What runs in a pod of ours is
// none: a workload's name must not keep the agent from starting.
func (k KubeletCheck) processes() (pids []string) {
	entries, _ := os.ReadDir(k.Proc)
	for _, entry := range entries {
		if _, err := strconv.Atoi(entry.Name()); err != nil {
			continue
		}
		cmdline, _ := os.ReadFile(filepath.Join(k.Proc, entry.Name(), "cmdline"))
		args := strings.Split(string(cmdline), "\x00")
		named := filepath.Base(args[0]) == "kubelet" || len(args) > 1 && args[1] == "kubelet" && filepath.Base(args[0]) == "hyperkube"
		if named && !k.inPod(entry.Name()) {
			pids = append(pids, entry.Name())
		}
	}
	return pids
}

// inPod says whether the process belongs to a container of ours: to a unit in a pod's slice.
func (k KubeletCheck) inPod(pid string) bool {
	groups, _ := os.ReadFile(filepath.Join(k.Proc, pid, "cgroup"))
	for line := range strings.Lines(string(groups)) {
		_, path, _ := strings.Cut(line, "/")
		if strings.HasPrefix(path, "kubepods.slice/") && strings.Contains(path, "/vkm-") {
			return true
		}
	}
	return false
}

func inUse(port int) bool {
	l, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err == nil {
		l.Close()
	}
	return errors.Is(err, syscall.EADDRINUSE)
}

func unitState(ctx context.Context, unit string) string {
	conn, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return ""
	}
	defer conn.Close()
	property, err := conn.GetUnitPropertyContext(ctx, unit, "ActiveState")
	if err != nil {
		return ""
	}
	state, _ := property.Value.Value().(string)
	return state
}
