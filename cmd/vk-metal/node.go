package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/internal/bootstrap"
	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/internal/version"
)

func newNode(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "node",
		Short: "Run the node agent (vk-metal.service does)",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return runNode(cmd.Context(), g) },
	}
}

// runNode is the agent's life: configuration, identity, then all parts until a signal.
func runNode(ctx context.Context, g *globals) error {
	cfg, err := config.Load(g.configPath)
	if err != nil {
		return err
	}
	level := &slog.LevelVar{}
	level.Set(cfg.LogLevel)
	log := newLogger(level)
	name, err := cfg.ResolveNodeName()
	if err != nil {
		return err
	}
	if err := bootstrap.NewKubeletCheck(cfg.Listen.Port, 10255).Run(ctx); err != nil {
		return err
	}
	if err := makeDirs(g); err != nil {
		return err
	}
	log.Info("vk-metal starts", "version", version.Version(), "kubelet", version.Kubelet(), "node", name)
	a := &agent{g: g, cfg: cfg, name: name, log: log, level: level, metrics: prometheus.NewRegistry()}
	a.awaitTurn(ctx)
	err = a.run(ctx, reload(log, g.configPath, level))
	notify(log, daemon.SdNotifyStopping)
	if err != nil {
		return err
	}
	log.Info("vk-metal stops; pods run on")
	return nil
}

// makeDirs makes the roots that a package would have made (systemd's RuntimeDirectory= and
// StateDirectory= do it for the service).
func makeDirs(g *globals) error {
	for _, dir := range []struct {
		path string
		mode os.FileMode
	}{{g.layout.Run, 0o755}, {g.layout.Lib, 0o711}, {g.layout.Log, 0o755}, {g.layout.PKI(), 0o700}, {g.layout.Images(), 0o711}} {
		if err := os.MkdirAll(dir.path, dir.mode); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	return nil
}

// run gets an identity and then runs every part.
func (a *agent) run(ctx context.Context, extra ...task.Task) error {
	identity, err := a.connect()
	if err != nil {
		return err
	}
	a.watchExpiry(identity)
	tasks := append([]task.Task{}, extra...)
	if identity != nil {
		stop := a.startIdentity(ctx, identity)
		defer stop()
		if a.awaitCertificate(ctx, identity); ctx.Err() != nil {
			return nil
		}
	}
	parts, err := a.parts(ctx)
	if err != nil {
		return err
	}
	tasks = append(tasks, parts...)
	tasks = append(tasks, watchdog(a.log, a.alive))
	return task.Run(ctx, a.log, func() {
		notify(a.log, daemon.SdNotifyReady+"\nSTATUS=node "+a.name)
		a.log.Info("ready")
	}, tasks...)
}

func (a *agent) startIdentity(ctx context.Context, identity *bootstrap.Identity) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = identity.Run(ctx)
	}()
	return func() { cancel(); <-done }
}

// awaitCertificate waits for the first certificate as long as the cluster's administrators
// need to approve it; systemd's start time-out is put off meanwhile.
func (a *agent) awaitCertificate(ctx context.Context, identity *bootstrap.Identity) {
	const every = 20 * time.Second
	for first := true; ; first = false {
		select {
		case <-identity.Got():
			return
		case <-ctx.Done():
			return
		default:
		}
		if first {
			a.log.Info("waiting for this node's client certificate to be approved", "look", "kubectl get csr")
		}
		notify(a.log, fmt.Sprintf("STATUS=waiting for the client certificate\nEXTEND_TIMEOUT_USEC=%d\nWATCHDOG=1", (3*every).Microseconds()))
		select {
		case <-identity.Got():
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}
