package rig

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
)

// The operations of a supervisor.
const (
	opStatus     = "status"
	opStart      = "start"
	opStop       = "stop"
	opReboot     = "reboot"
	opPowerCut   = "power-cut"
	opWaitBooted = "wait-booted"
)

// request and reply are one JSON object each way on a supervisor's socket; closing the
// connection gives up.
type request struct {
	Op string `json:"op"`
}

type reply struct {
	Error  string       `json:"error,omitempty"`
	State  MachineState `json:"state"`
	Boot   int          `json:"boot"`
	Leader int          `json:"leader"`
}

// controlSocket is the name of a supervisor's socket in the machine's directory.
const controlSocket = "control.sock"

// shortSocket is a path of at most 107 bytes to a file in a directory of any length,
// good while dir is open.
func shortSocket(dir *os.File, name string) string {
	return fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
}

// ask sends an operation to the supervisor and waits for its end.
func (m *Machine) ask(ctx context.Context, op string) (reply, error) {
	rep, err := m.exchange(ctx, op)
	if err == nil && rep.Error != "" {
		err = errors.New(rep.Error)
	}
	if err != nil {
		return rep, fmt.Errorf("%s machine %s: %w", op, m.Name, err)
	}
	return rep, nil
}

// exchange is one request and its reply.
func (m *Machine) exchange(ctx context.Context, op string) (reply, error) {
	var rep reply
	dir, err := os.Open(m.rig.machineDir(m.Name))
	if err != nil {
		return rep, err
	}
	defer dir.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "unix", shortSocket(dir, controlSocket))
	if err != nil {
		return rep, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	if err := json.NewEncoder(conn).Encode(request{Op: op}); err != nil {
		return rep, err
	}
	if err := json.NewDecoder(conn).Decode(&rep); err != nil {
		return rep, errors.Join(ctx.Err(), fmt.Errorf("read reply: %w", err))
	}
	return rep, nil
}
