package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// nspawn is a machine as a systemd-nspawn container with a network namespace that is
// new at each boot. See the man page for the environment variables: sysctls of the
// namespace are writable, and no lock is taken on the root.
type nspawn struct {
	m *Machine

	mu     sync.Mutex
	leader int // PID 1 of the container, as the host sees it
	main   int // systemd-nspawn itself
}

const (
	// rebootExit is how systemd-nspawn --keep-unit ends when the container reboots.
	rebootExit = 133
	// sigRTMin is SIGRTMIN as glibc and systemd count.
	sigRTMin = 34
	// sigPowerOff and sigReboot are systemd(1)'s SIGRTMIN+4 and +5.
	sigPowerOff = unix.Signal(sigRTMin + 4)
	sigReboot   = unix.Signal(sigRTMin + 5)
	// killGrace is how long nspawn may take to notice that its container is dead.
	killGrace = 10 * time.Second
)

// boot runs one boot from power-on to power-off.
func (n *nspawn) boot(ctx context.Context, ev bootEvents) (bool, error) {
	if err := n.reset(ctx); err != nil {
		return false, err
	}
	cgroups, err := makeCgroup(n.m.rig.id, n.m.payloadGroup())
	if err != nil {
		return false, err
	}
	if err := n.connect(); err != nil {
		return false, err
	}
	notify, err := n.listen(ev)
	if err != nil {
		return false, err
	}
	defer notify.Close()
	cmd, err := n.launch(cgroups, notify.LocalAddr().String())
	if err != nil {
		return false, err
	}
	err = cmd.Wait()
	n.remember(0, 0)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == rebootExit {
		return true, n.reset(ctx)
	}
	return false, errors.Join(err, n.reset(ctx))
}

// launch starts systemd-nspawn with its output on the console log.
func (n *nspawn) launch(cgroups []string, notify string) (*exec.Cmd, error) {
	path, err := exec.LookPath("systemd-nspawn")
	if err != nil {
		return nil, fmt.Errorf("find systemd-nspawn: %w", err)
	}
	console, err := openLog(n.m.ConsolePath())
	if err != nil {
		return nil, err
	}
	defer console.Close()
	env := append([]string{
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=network", "SYSTEMD_NSPAWN_LOCK=0", "NOTIFY_SOCKET=" + notify,
	}, defaultEnv...)
	cmd, err := startExec(execSpec{Cgroups: cgroups, Dir: "/", Path: path, Argv: n.argv(), Env: env}, console, console)
	if err != nil {
		return nil, err
	}
	n.mu.Lock()
	n.main = cmd.Process.Pid
	n.mu.Unlock()
	return cmd, nil
}

// argv is systemd-nspawn's command line.
func (n *nspawn) argv() []string {
	m := n.m
	argv := []string{
		"systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--notify-ready=yes",
		"--machine=" + m.rig.id + "-" + m.Name, "--hostname=" + m.Name, "--uuid=" + m.record.MachineID,
		"--link-journal=no", "--resolv-conf=off", "--timezone=off",
		"--capability=all", "--system-call-filter=@known", "--console=pipe",
		"--kill-signal=SIGRTMIN+4", "--network-namespace-path=" + netnsPath(m.rig.id, m.Name),
	}
	for _, b := range m.record.Binds {
		opt := "--bind="
		if b.ReadOnly {
			opt = "--bind-ro="
		}
		argv = append(argv, opt+escapeBind(b.Host)+":"+escapeBind(b.Machine))
	}
	return append(argv, "-D", m.Root(), initPath, "systemd.unit=multi-user.target", "systemd.show_status=yes")
}

// escapeBind quotes a path for nspawn's --bind.
func escapeBind(path string) string {
	return strings.NewReplacer(`\`, `\\`, ":", `\:`).Replace(path)
}

// connect makes the machine's namespace for this boot and plugs it into the rack.
func (n *nspawn) connect() error {
	s, err := readState(n.m.rig.dir)
	if err != nil {
		return err
	}
	rec, err := s.machine(n.m.Name)
	if err != nil {
		return err
	}
	rs, err := s.rack(rec.Rack)
	if err != nil {
		return err
	}
	mac, err := net.ParseMAC(rec.MAC)
	if err != nil {
		return fmt.Errorf("parse MAC of machine %s: %w", rec.Name, err)
	}
	e := Endpoint{Name: rec.Name, Rack: rec.Rack, NetnsPath: netnsPath(n.m.rig.id, rec.Name), V4: rec.V4, V6: rec.V6}
	return attach(rs.Rack, e, mac, !rec.Partitioned)
}

// listen receives what nspawn says about the boot: its leader's pid when it runs, and
// READY=1 when systemd in it has finished booting.
func (n *nspawn) listen(ev bootEvents) (*net.UnixConn, error) {
	name := fmt.Sprintf("@%s-%s-notify", n.m.rig.id, n.m.Name)
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for boot events: %w", err)
	}
	go func() {
		buf := make([]byte, 4096)
		for {
			size, err := conn.Read(buf)
			if err != nil {
				return
			}
			n.heed(string(buf[:size]), ev)
		}
	}()
	return conn, nil
}

// heed handles one notification.
func (n *nspawn) heed(msg string, ev bootEvents) {
	for line := range strings.Lines(msg) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch key {
		case "X_NSPAWN_LEADER_PID":
			if pid, err := strconv.Atoi(value); err == nil {
				n.mu.Lock()
				n.leader = pid
				n.mu.Unlock()
				n.noteLeader(pid)
				ev.leader(pid)
			}
		case "READY":
			if value == "1" {
				ev.ready()
			}
		}
	}
}

// leaderFile tells Down, should the supervisor be dead, whom to kill first.
const leaderFile = "leader"

// noteLeader writes the leader's pid and start time.
func (n *nspawn) noteLeader(pid int) {
	start, _, _ := procStat(pid)
	path := filepath.Join(n.m.rig.machineDir(n.m.Name), leaderFile)
	_ = os.WriteFile(path, fmt.Appendf(nil, "%d %d\n", pid, start), 0o644) // best effort: see killLeaders
}

// remember notes the processes of this boot.
func (n *nspawn) remember(leader, main int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leader, n.main = leader, main
}

// reset removes what a boot leaves outside of the disk.
func (n *nspawn) reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	return errors.Join(
		killCgroup(ctx, n.m.rig.id, n.m.payloadGroup()),
		removeNetns(netnsPath(n.m.rig.id, n.m.Name)),
		n.m.unplug(),
		detachLoops(n.m.Root()),
	)
}

// signal asks systemd in the container for a clean end.
func (n *nspawn) signal(how shutdown) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.leader == 0 {
		return errors.New("ask for shutdown: PID 1 does not run yet")
	}
	sig := sigPowerOff
	if how == restart {
		sig = sigReboot
	}
	if err := unix.Kill(n.leader, sig); err != nil {
		return fmt.Errorf("ask for shutdown: %w", err)
	}
	return nil
}

// kill ends the container; nspawn, which then sees its end, tidies up and goes, or is
// killed too.
func (n *nspawn) kill() error {
	n.mu.Lock()
	leader, main := n.leader, n.main
	n.mu.Unlock()
	if main == 0 {
		return nil
	}
	if leader == 0 {
		return unix.Kill(main, unix.SIGKILL)
	}
	_ = unix.Kill(leader, unix.SIGKILL) // gone already is as good
	time.AfterFunc(killGrace, func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.main == main { // not reaped, so the pid is still its own
			_ = unix.Kill(main, unix.SIGKILL)
		}
	})
	return nil
}
