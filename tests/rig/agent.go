package rig

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
)

// arg0Agent is the name under which this executable is a virtual machine's agent.
const arg0Agent = "vk-metal-rig-agent"

// agentConfig is what a virtual machine's agent is told on the kernel's command line,
// base64-encoded JSON after agentParam.
type agentConfig struct {
	MAC      string       `json:"mac"`
	V4       netip.Prefix `json:"v4"`
	V6       netip.Prefix `json:"v6"`
	Gateway4 netip.Addr   `json:"gateway4"`
	Gateway6 netip.Addr   `json:"gateway6"`
}

const (
	agentParam = "rig.agent="
	// manageMAC is the interface that leads to the rig's side of QEMU, not into a rack.
	manageMAC = "02:72:69:67:00:01"
	// agentAddr is the agent's address on QEMU's user-mode network.
	agentAddr = "10.0.2.15"
	agentPort = "7"
)

// agentMain configures the network, says READY, and serves commands for ever.
func agentMain() int {
	l, err := agentSetUp()
	if err == nil {
		err = notifyReady()
	}
	if err == nil {
		err = agentServe(l)
	}
	slog.Error("agent ends", "error", err)
	return 1
}

// agentSetUp configures the rack's interface as an installer would have done, moves the
// other out of the machine's sight, and listens there.
func agentSetUp() (net.Listener, error) {
	cfg, err := readAgentConfig()
	if err != nil {
		return nil, err
	}
	rack, err := linkByMAC(cfg.MAC)
	if err != nil {
		return nil, err
	}
	if err := configure(rack, []netip.Prefix{cfg.V4, cfg.V6}); err != nil {
		return nil, err
	}
	for _, gw := range []netip.Addr{cfg.Gateway4, cfg.Gateway6} {
		if err := addRoute(netip.Prefix{}, gw, rack); err != nil {
			return nil, err
		}
	}
	return listenApart()
}

// readAgentConfig finds the configuration on the kernel's command line.
func readAgentConfig() (agentConfig, error) {
	var cfg agentConfig
	b, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return cfg, fmt.Errorf("read kernel command line: %w", err)
	}
	for _, f := range strings.Fields(string(b)) {
		v, ok := strings.CutPrefix(f, agentParam)
		if !ok {
			continue
		}
		data, err := base64.StdEncoding.DecodeString(v)
		if err != nil {
			return cfg, fmt.Errorf("decode %s: %w", agentParam, err)
		}
		return cfg, json.Unmarshal(data, &cfg)
	}
	return cfg, fmt.Errorf("read kernel command line: no %s", agentParam)
}

// linkByMAC is the name of the interface with that address.
func linkByMAC(mac string) (string, error) {
	links, err := netlink.LinkList()
	if err != nil {
		return "", fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		if l.Attrs().HardwareAddr.String() == mac {
			return l.Attrs().Name, nil
		}
	}
	return "", fmt.Errorf("find the interface with address %s: %w", mac, ErrNotFound)
}

// apartNetns is where the agent keeps its interface over its own restarts.
const apartNetns = "/run/rig-agent.netns"

// listenApart listens on the other interface, in a network namespace of its own: the
// machine has but one interface.
func listenApart() (net.Listener, error) {
	if name, err := linkByMAC(manageMAC); err == nil {
		if err := moveApart(name); err != nil {
			return nil, err
		}
	}
	var l net.Listener
	err := inNetns(apartNetns, func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(agentAddr, agentPort))
		return err
	})
	return l, err
}

// moveApart makes the namespace and moves the interface there.
func moveApart(name string) error {
	if err := removeNetns(apartNetns); err != nil {
		return err
	}
	if err := makeNetns(apartNetns); err != nil {
		return err
	}
	h, err := openNetns(apartNetns)
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetNsFd(l, int(h)); err != nil {
		return fmt.Errorf("move link %s: %w", name, err)
	}
	return inNetns(apartNetns, func() error {
		return configure(name, []netip.Prefix{netip.MustParsePrefix(agentAddr + "/24")})
	})
}

// notifyReady tells systemd that the network is configured.
func notifyReady() error {
	conn, err := (&net.Dialer{}).DialContext(context.Background(), "unixgram", os.Getenv("NOTIFY_SOCKET"))
	if err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	defer conn.Close()
	_, err = conn.Write([]byte("READY=1"))
	return err
}

// agentServe runs one command per connection.
func agentServe(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go func() {
			defer conn.Close()
			if err := agentRun(conn); err != nil {
				slog.Warn("serve command", "error", err)
			}
		}()
	}
}

// agentRun runs one command; the client hanging up kills it.
func agentRun(conn net.Conn) error {
	var mu sync.Mutex
	if _, err := (&frameWriter{&mu, conn, frameHello}).Write(nil); err != nil {
		return fmt.Errorf("greet client: %w", err)
	}
	in := bufio.NewReader(conn)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read command: %w", err)
	}
	var c agentCommand
	if err := json.Unmarshal(line, &c); err != nil || len(c.Argv) == 0 {
		return fmt.Errorf("parse command %q: %w", line, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Argv[0], c.Argv[1:]...)
	cmd.Env, cmd.Dir = append(slices.Clone(defaultEnv), c.Env...), "/"
	cmd.Stdout, cmd.Stderr = &frameWriter{&mu, conn, frameStdout}, &frameWriter{&mu, conn, frameStderr}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	go func() {
		defer cancel()
		feed(in, stdin)
	}()
	code, err := runGroup(cmd)
	if err != nil {
		_, _ = (&frameWriter{&mu, conn, frameStderr}).Write([]byte(err.Error() + "\n"))
		code = startErrorCode(err)
	}
	_, err = fmt.Fprintf(&frameWriter{&mu, conn, frameExit}, "%d", code)
	return err
}

// startErrorCode is the shell's code for a program that does not start.
func startErrorCode(err error) int {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, exec.ErrNotFound) {
		return 127
	}
	return 126
}

// feed copies stdin's frames until the client hangs up.
func feed(in io.Reader, stdin io.WriteCloser) {
	defer stdin.Close()
	for {
		kind, data, err := readFrame(in)
		if err != nil {
			return
		}
		if kind == frameStdin && len(data) == 0 {
			_ = stdin.Close()
		} else {
			_, _ = stdin.Write(data) // a command that does not read is not an error
		}
	}
}
