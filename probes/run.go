package probes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

const (
	// maxRetries is how often a probe that could not be run is tried before it counts as unknown.
	maxRetries = 3
	maxOutput  = 10 << 10

	reasonUnhealthy = "Unhealthy"
	reasonWarning   = "ProbeWarning"
)

// outcome of one try.
type outcome struct {
	result  result
	output  string
	warning bool // a success that deserves an event
}

// conclude takes the outcome of a probe's first try, tries again one that could not be
// run, and reports it as an event where a kubelet does.
func (p *Prober) conclude(ctx context.Context, kind Kind, spec *corev1.Probe, target Target, o outcome, err error) (result, string) {
	for n := 1; n < maxRetries && err != nil && ctx.Err() == nil; n++ {
		o, err = p.try(ctx, spec, target)
	}
	switch {
	case ctx.Err() != nil:
	case err != nil:
		p.onEvent(target, corev1.EventTypeWarning, reasonUnhealthy,
			fmt.Sprintf("%s probe errored and resulted in %s state: %s", kind, stateOf(o), err))
		return unknown, err.Error()
	case o.warning:
		p.onEvent(target, corev1.EventTypeWarning, reasonWarning, fmt.Sprintf("%s probe warning: %s", kind, o.output))
	case o.result == failure:
		p.onEvent(target, corev1.EventTypeWarning, reasonUnhealthy, fmt.Sprintf("%s probe failed: %s", kind, o.output))
	}
	return o.result, o.output
}

// stateOf is the kubelet's word for an outcome that came with an error.
func stateOf(o outcome) string {
	if o.result == failure {
		return "failure"
	}
	return "unknown"
}

// try runs the probe once. An error says that it could not be run at all.
func (p *Prober) try(parent context.Context, spec *corev1.Probe, target Target) (outcome, error) {
	if r := routeOf(spec, target); r != nil {
		return callOnce(r, timeout(spec))
	}
	ctx, cancel := probeContext(parent, spec)
	defer cancel()
	switch {
	case spec.Exec != nil:
		return p.exec(ctx, spec, target)
	case spec.HTTPGet != nil:
		return probeHTTP(parent, spec, target)
	case spec.TCPSocket != nil:
		port, err := resolvePort(spec.TCPSocket.Port, target.Container)
		if err != nil {
			return outcome{}, err
		}
		return probeTCP(ctx, address(spec.TCPSocket.Host, target.PodIP, port)), nil
	case spec.GRPC != nil:
		return probeGRPC(ctx, spec, address("", target.PodIP, int(spec.GRPC.Port))), nil
	}
	return outcome{}, fmt.Errorf("container %s has a probe without an action", target.Container.Name)
}

// callOnce makes one call.
func callOnce(r *route, timeout time.Duration) (outcome, error) {
	type answer struct {
		outcome
		err error
	}
	answers := make(chan answer, 1)
	runCalls([]*call{newCall(r, timeout, func(o outcome, err error) { answers <- answer{o, err} })})
	a := <-answers
	return a.outcome, a.err
}

func address(host, podIP string, port int) string {
	if host == "" {
		host = podIP
	}
	return net.JoinHostPort(host, strconv.Itoa(port))
}

// resolvePort finds a named port among the container's; a name may also be a number.
func resolvePort(port intstr.IntOrString, c corev1.Container) (int, error) {
	n := port.IntValue()
	if port.Type == intstr.String {
		for _, p := range c.Ports {
			if p.Name == port.StrVal {
				n = int(p.ContainerPort)
			}
		}
	}
	if n < 1 || n > 65535 {
		return 0, fmt.Errorf("container %s has no port %q", c.Name, port.String())
	}
	return n, nil
}

func probeTCP(ctx context.Context, address string) outcome {
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return outcome{result: failure, output: err.Error()}
	}
	_ = conn.Close()
	return outcome{result: success}
}

func (p *Prober) exec(ctx context.Context, spec *corev1.Probe, target Target) (outcome, error) {
	command := expandStatic(spec.Exec.Command, target.Container.Env)
	code, output, err := p.execer.ExecProbe(ctx, target, command)
	output = output[:min(len(output), maxOutput)]
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return outcome{result: failure, output: fmt.Sprintf("command timed out: %q timed out after %s", command, timeout(spec))}, nil
	case err != nil:
		return outcome{}, err
	case code != 0:
		return outcome{result: failure, output: string(output)}, nil
	}
	return outcome{result: success, output: string(output)}, nil
}
