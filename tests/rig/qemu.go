package rig

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// qemu is a machine as a virtual machine, on a tap in its rack.
type qemu struct {
	m *Machine

	mu  sync.Mutex
	pid int
}

// qmpSocket is QEMU's monitor, in the machine's directory, which is QEMU's own.
const qmpSocket = "qmp.sock"

const (
	// vmMemory is a virtual machine's memory.
	vmMemory = "1536M"
	// vmNice lets an emulated processor take what others leave: it would take all.
	vmNice = 19
)

// boot runs one boot: QEMU ends when the system powers off or resets.
func (q *qemu) boot(ctx context.Context, ev bootEvents) (bool, error) {
	if err := q.reset(ctx); err != nil {
		return false, err
	}
	s, err := readState(q.m.rig.dir)
	if err != nil {
		return false, err
	}
	rs, err := s.rack(q.m.Rack)
	if err != nil {
		return false, err
	}
	rec, err := s.machine(q.m.Name)
	if err != nil {
		return false, err
	}
	if err := makeTap(rs.NetnsPath, portName(q.m.Name), !rec.Partitioned); err != nil {
		return false, err
	}
	cmd, err := q.launch(rs.Rack)
	if err != nil {
		return false, err
	}
	ev.leader(cmd.Process.Pid)
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	go q.watchBoot(watch, ev)
	reset := make(chan bool, 1)
	go func() { reset <- q.watchReset(watch) }()
	err = cmd.Wait()
	q.mu.Lock()
	q.pid = 0
	q.mu.Unlock()
	cancel()
	return <-reset && err == nil, errors.Join(err, q.reset(ctx))
}

// reset removes what a boot leaves outside of the disk.
func (q *qemu) reset(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, downTimeout)
	defer cancel()
	_ = os.Remove(filepath.Join(q.m.rig.machineDir(q.m.Name), qmpSocket)) // a dead QEMU's
	return errors.Join(killCgroup(ctx, q.m.rig.id, q.m.payloadGroup()), q.m.unplug())
}

// makeTap makes a tap in the rack and plugs it into the bridge.
func makeTap(rackNetns, port string, attached bool) error {
	return inNetns(rackNetns, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = port
		tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
		if err := netlink.LinkAdd(tap); err != nil {
			return fmt.Errorf("make tap %s: %w", port, err)
		}
		_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+port+"/disable_ipv6", []byte("1"), 0)
		return errors.Join(plugPort(port, attached), setLink(port, true))
	})
}

// launch starts QEMU in the rack's namespace.
func (q *qemu) launch(rack Rack) (*exec.Cmd, error) {
	path, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return nil, fmt.Errorf("find QEMU: %w", err)
	}
	argv, err := q.argv(rack)
	if err != nil {
		return nil, err
	}
	cgroups, err := makeCgroup(q.m.rig.id, q.m.payloadGroup())
	if err != nil {
		return nil, err
	}
	dir := q.m.rig.machineDir(q.m.Name)
	log, err := openLog(filepath.Join(q.m.rig.dir, "logs", "qemu-"+q.m.Name+".log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd, err := startExec(execSpec{Cgroups: cgroups, Netns: rack.NetnsPath, Nice: vmNice, Dir: dir, Path: path, Argv: argv, Env: defaultEnv}, log, log)
	if err != nil {
		return nil, err
	}
	q.mu.Lock()
	q.pid = cmd.Process.Pid
	q.mu.Unlock()
	return cmd, nil
}

// argv is QEMU's command line: software emulation of a processor that Debian's kernel
// boots on there, a disk, the agent's disk, the rack's network and the agent's.
func (q *qemu) argv(rack Rack) ([]string, error) {
	image, err := EnsureImage(context.Background(), VMRoot(), nil)
	if err != nil {
		return nil, err
	}
	m := q.m
	cfg, err := json.Marshal(agentConfig{
		MAC: m.record.MAC, V4: netip.PrefixFrom(m.V4, rack.V4.Bits()), V6: netip.PrefixFrom(m.V6, rack.V6.Bits()),
		Gateway4: rack.Gateway4, Gateway6: rack.Gateway6,
	})
	if err != nil {
		return nil, fmt.Errorf("encode agent configuration: %w", err)
	}
	more, err := os.ReadFile(filepath.Join(m.rig.machineDir(m.Name), vmKernelArgs))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read kernel arguments: %w", err)
	}
	kernel := strings.Join([]string{
		"root=/dev/vda", "rw", "rootflags=prjquota", "console=ttyS0", "quiet", "panic=-1", "systemd.unit=multi-user.target", "systemd.show_status=yes", "systemd.default_standard_error=journal+console",
		"systemd.hostname=" + m.Name, "systemd.machine_id=" + m.record.MachineID, "net.ifnames=0", "mitigations=off",
		agentParam + base64.StdEncoding.EncodeToString(cfg), string(more),
	}, " ")
	return []string{
		"qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,accel=tcg", "-cpu", "Nehalem,-cx16", "-smp", "2", "-m", vmMemory,
		"-kernel", filepath.Join(image, imageKernel), "-initrd", filepath.Join(image, imageInitrd), "-append", kernel,
		"-drive", "if=virtio,format=qcow2,cache=unsafe,file=" + vmDisk,
		"-drive", "if=virtio,format=raw,readonly=on,file=" + vmAgent,
		"-netdev", "tap,id=rack,script=no,downscript=no,ifname=" + portName(m.Name),
		"-device", "virtio-net-pci,netdev=rack,mac=" + m.record.MAC,
		"-netdev", fmt.Sprintf("user,id=agent,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:%d-%s:%s", m.agentPort(), agentAddr, agentPort),
		"-device", "virtio-net-pci,netdev=agent,mac=" + manageMAC,
		"-device", "virtio-rng-pci", "-serial", "file:console.log", "-qmp", "unix:" + qmpSocket + ",server=on,wait=off",
	}, nil
}

// SetKernelArgs adds arguments to the kernel's command line of later boots of a virtual machine;
// they replace former ones.
func (m *Machine) SetKernelArgs(args string) error {
	if !m.record.VM {
		return fmt.Errorf("set kernel arguments of %s: it is no virtual machine", m.Name)
	}
	if err := os.WriteFile(filepath.Join(m.rig.machineDir(m.Name), vmKernelArgs), []byte(args), 0o600); err != nil {
		return fmt.Errorf("set kernel arguments: %w", err)
	}
	return nil
}

// watchBoot waits for the agent, and then for systemd's own word.
func (q *qemu) watchBoot(ctx context.Context, ev bootEvents) {
	err := poll(ctx, 500*time.Millisecond, func() (bool, error) {
		_, err := q.m.askAgent(ctx, Command{Argv: []string{"systemctl", "is-system-running", "--wait"}})
		return err == nil, nil // any state is booted: a failed unit does not keep a server down
	})
	if err == nil {
		ev.ready()
	}
}

// watchReset reads the monitor's events until QEMU ends; true when the system was reset.
func (q *qemu) watchReset(ctx context.Context) bool {
	var conn net.Conn
	err := poll(ctx, 10*time.Millisecond, func() (bool, error) {
		dir, err := os.Open(q.m.rig.machineDir(q.m.Name))
		if err != nil {
			return false, err
		}
		defer dir.Close()
		conn, err = (&net.Dialer{}).DialContext(ctx, "unix", shortSocket(dir, qmpSocket))
		return err == nil, nil // it listens soon
	})
	if err != nil {
		return false
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(`{"execute":"qmp_capabilities"}` + "\n")); err != nil {
		return false
	}
	sc := bufio.NewScanner(conn)
	for sc.Scan() {
		var e struct {
			Event string `json:"event"`
			Data  struct {
				Reason string `json:"reason"`
			} `json:"data"`
		}
		if json.Unmarshal(sc.Bytes(), &e) == nil && e.Event == "SHUTDOWN" {
			return e.Data.Reason == "guest-reset"
		}
	}
	return false
}

// signal asks systemd in the machine for a clean end.
func (q *qemu) signal(how shutdown) error {
	verb := "poweroff"
	if how == restart {
		verb = "reboot"
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	_, err := q.m.askAgent(ctx, Command{Argv: []string{"systemctl", "--no-block", verb}})
	return err
}

// kill ends QEMU at once.
func (q *qemu) kill() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pid == 0 {
		return nil
	}
	if err := unix.Kill(q.pid, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill QEMU: %w", err)
	}
	return nil
}
