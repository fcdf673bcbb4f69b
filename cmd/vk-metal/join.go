package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/internal/bootstrap"
	"github.com/vk-metal/vk-metal/internal/config"
)

type joinFlags struct {
	token, tokenFile string
	hashes           []string
	nodeName         string
	unsafe, force    bool
	start            bool
	wait             time.Duration
}

func newJoin(g *globals) *cobra.Command {
	var f joinFlags
	cmd := &cobra.Command{
		Use:   "join https://server:6443 [https://server:6443 ...] --token id.secret --ca-hash sha256:...",
		Short: "Join this server to a cluster",
		Long: `Join this server to a cluster, as kubeadm join does: find the cluster's CA with a
bootstrap token and the hash of the CA's public key, write the configuration, and get the
node's client certificate. The token and the hash are those of

    kubeadm token create --print-join-command

Name every API server: the agent moves to the next when one cannot be reached.
Settings that are already in the configuration are kept; one that differs stops join
unless --force is given.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return runJoin(cmd, g, f, args) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.token, "token", "", "bootstrap token (visible in the process list; see --token-file)")
	flags.StringVar(&f.tokenFile, "token-file", "", "file with the bootstrap token")
	flags.StringSliceVar(&f.hashes, "ca-hash", nil, "sha256:... of the cluster CA's public key; several are alternatives")
	flags.StringVar(&f.nodeName, "node-name", "", "name of the Node (default: the host name)")
	flags.BoolVar(&f.unsafe, "unsafe-skip-ca-hash", false, "trust whoever knows the token to name the CA")
	flags.BoolVar(&f.force, "force", false, "replace settings that differ")
	flags.BoolVar(&f.start, "start", true, "enable and start vk-metal.service afterwards")
	flags.DurationVar(&f.wait, "wait", 2*time.Minute, "how long to wait for the certificate")
	return cmd
}

func runJoin(cmd *cobra.Command, g *globals, f joinFlags, servers []string) error {
	ctx := cmd.Context()
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	options, err := f.options(servers)
	if err != nil {
		return err
	}
	options.ConfigPath, options.PKI, options.Log = g.configPath, g.layout.PKI(), log
	if err := bootstrap.NewKubeletCheck().Run(ctx); err != nil {
		return err
	}
	cfg, err := bootstrap.Join(ctx, options)
	if err != nil && !errors.Is(err, bootstrap.ErrNotApproved) {
		return err
	}
	pending := err
	name, err := cfg.ResolveNodeName()
	if err != nil {
		return err
	}
	out := cmd.OutOrStdout()
	fmt.Fprintf(out, "Configuration written to %s.\n", options.ConfigPath)
	if pending != nil {
		fmt.Fprintf(out, "%s\n", pending)
	} else {
		fmt.Fprintf(out, "This server is known to the cluster as node %s.\n", name)
	}
	return startAgent(ctx, cmd, f.start)
}

// options checks the flags; all mistakes are reported at once.
func (f *joinFlags) options(servers []string) (o bootstrap.JoinOptions, err error) {
	var errs []error
	for _, server := range servers {
		parsed, err := config.ParseAPIServer(server)
		errs = append(errs, err)
		o.Servers = append(o.Servers, parsed)
	}
	text, err := f.tokenText()
	errs = append(errs, err)
	if err == nil {
		o.Token, err = bootstrap.ParseToken(text)
		errs = append(errs, err)
	}
	for _, hash := range f.hashes {
		pin, err := bootstrap.ParsePin(hash)
		errs = append(errs, err)
		o.Pins = append(o.Pins, pin)
	}
	if len(f.hashes) == 0 && !f.unsafe {
		errs = append(errs, errors.New("--ca-hash is missing: kubeadm token create --print-join-command shows it"))
	}
	o.NodeName, o.Force, o.Wait = f.nodeName, f.force, f.wait
	return o, errors.Join(errs...)
}

func (f *joinFlags) tokenText() (string, error) {
	switch {
	case f.token != "" && f.tokenFile != "":
		return "", errors.New("give --token or --token-file, not both")
	case f.tokenFile != "":
		data, err := os.ReadFile(f.tokenFile)
		if err != nil {
			return "", fmt.Errorf("read bootstrap token: %w", err)
		}
		return strings.TrimSpace(string(data)), nil
	}
	return f.token, nil
}

// runsSystemd is sd_booted(3).
func runsSystemd() bool {
	_, err := os.Stat("/run/systemd/system")
	return err == nil
}

// startAgent enables the service and starts it with the new settings.
func startAgent(ctx context.Context, cmd *cobra.Command, wanted bool) error {
	const byHand = "Start the agent with: systemctl enable --now vk-metal.service\n"
	if !wanted || !runsSystemd() {
		fmt.Fprint(cmd.OutOrStdout(), byHand)
		return nil
	}
	for _, args := range [][]string{{"enable", "--quiet", "vk-metal.service"}, {"restart", "--no-block", "vk-metal.service"}} {
		if output, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput(); err != nil {
			return fmt.Errorf("start vk-metal.service: %w: %s", err, strings.TrimSpace(string(output)))
		}
	}
	fmt.Fprint(cmd.OutOrStdout(), "The agent starts; watch it with: journalctl -fu vk-metal.service\n")
	return nil
}
