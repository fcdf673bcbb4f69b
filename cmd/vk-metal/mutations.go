//go:build mutations

package main

import (
	"context"
	"os"
	"sync"
	"syscall"

	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/probes"
	"github.com/vk-metal/vk-metal/provider"
	"github.com/vk-metal/vk-metal/systemd"
)

// mutationVariable names the one thing that this agent does wrong: tests that are to
// find it must fail (`make conformance-mutations`).
const mutationVariable = "VK_METAL_MUTATION"

// mutations are the ways in which an agent can be made to err, by name.
var mutations = map[string]func(*provider.Deps){
	"probes-succeed": func(d *provider.Deps) { d.Probes = blindProbes{d.Probes} },
	"exec-nothing":   func(d *provider.Deps) { d.Executor = idleExecutor{} },
	"no-term":        func(d *provider.Deps) { d.Runtime = deafRuntime{d.Runtime} },
	"stale-pod-ip":   func(d *provider.Deps) { d.Network = &staleNetwork{Network: d.Network} },
	"no-limits":      func(d *provider.Deps) { d.Runtime = boundlessRuntime{d.Runtime} },
}

// mutate panics on an unknown name: a mutation that is not made would pass every test.
func mutate(deps provider.Deps) provider.Deps {
	name := os.Getenv(mutationVariable)
	if name == "" {
		return deps
	}
	change, known := mutations[name]
	if !known {
		panic("unknown " + mutationVariable + " " + name)
	}
	change(&deps)
	deps.Log.Warn("This agent errs on purpose", "mutation", name)
	return deps
}

// blindProbes sees every probe succeed.
type blindProbes struct{ probes.Manager }

func (b blindProbes) Results(uid, container string, attempt int) (probes.Results, bool) {
	_, known := b.Manager.Results(uid, container, attempt)
	return probes.Results{Ready: true, Started: true}, known
}

// idleExecutor says that every command has succeeded.
type idleExecutor struct{}

func (idleExecutor) Exec(context.Context, systemd.ExecRequest) (int, error) { return 0, nil }

// deafRuntime sends no signal but KILL.
type deafRuntime struct{ systemd.Runtime }

func (r deafRuntime) Signal(ctx context.Context, unit string, signal syscall.Signal, all bool) error {
	if signal != syscall.SIGKILL {
		return nil
	}
	return r.Runtime.Signal(ctx, unit, signal, all)
}

// staleNetwork reports the address of the first pod for all that come after it.
type staleNetwork struct {
	netns.Network
	mu    sync.Mutex
	first *netns.PodAddress
}

func (s *staleNetwork) Setup(ctx context.Context, pod netns.PodNetwork) (netns.PodAddress, error) {
	address, err := s.Network.Setup(ctx, pod)
	if err != nil {
		return address, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.first == nil {
		s.first = &address
	}
	return *s.first, nil
}

// boundlessRuntime starts everything without limits and never sets any.
type boundlessRuntime struct{ systemd.Runtime }

func (r boundlessRuntime) EnsureSlice(ctx context.Context, slice systemd.Slice) error {
	slice.Resources = systemd.Resources{}
	return r.Runtime.EnsureSlice(ctx, slice)
}

func (r boundlessRuntime) Start(ctx context.Context, unit systemd.Unit) (systemd.Started, error) {
	unit.Resources = systemd.Resources{}
	return r.Runtime.Start(ctx, unit)
}

func (boundlessRuntime) SetResources(context.Context, string, systemd.Resources) error { return nil }
