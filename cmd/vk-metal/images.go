package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/config"
	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/systemd"
)

// newImages is the group of commands for the node's image store. They work beside a running
// agent: the store's locks are shared.
func newImages(g *globals) *cobra.Command {
	group := &cobra.Command{Use: "images", Short: "List, pull, import and prune the node's images"}
	group.AddCommand(newImagesList(g), newImagesPull(g), newImagesImport(g), newImagesPrune(g))
	return group
}

func openImages(g *globals) (*images.Manager, error) {
	cfg, err := config.Load(g.configPath)
	if err != nil {
		return nil, err
	}
	return images.NewManager(imageOptions(g.layout, cfg))
}

func imageOptions(layout paths.Layout, cfg config.Config) images.Options {
	o := images.Options{
		Root: layout.Images(), HostsDir: cfg.Registries.ConfigPath,
		HostImages: cfg.HostImages.Enabled, HostMounts: layout.HostRoots(), Private: layout.Private(),
		Verify: images.Verification{Policy: cfg.ImagePullVerification.Policy, Allowlist: cfg.ImagePullVerification.Allowlist},
	}
	for _, root := range cfg.HostImages.Roots {
		o.HostRoots = append(o.HostRoots, images.HostRoot(root))
	}
	return o
}

func newImagesList(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List images, least recently used first",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := openImages(g)
			if err != nil {
				return err
			}
			records, err := m.Records()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ID\tMIB\tUSED\tNAMES")
			for _, r := range records {
				fmt.Fprintf(w, "%.12s\t%d\t%s\t%s\n", r.ID.Encoded(), r.Size>>20, r.LastUsed.Format(time.DateTime), imageNames(r))
			}
			return w.Flush()
		},
	}
}

func imageNames(r images.Record) string {
	if len(r.Tags) > 0 {
		return strings.Join(r.Tags, " ")
	}
	return strings.Join(r.Digests, " ")
}

func newImagesPull(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "pull IMAGE",
		Short: "Pull an image without credentials",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openImages(g)
			if err != nil {
				return err
			}
			img, err := m.Ensure(cmd.Context(), images.PullRequest{Ref: args[0], Policy: corev1.PullAlways})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), img.Digest)
			return err
		},
	}
}

func newImagesImport(g *globals) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: `Import a docker-save or OCI archive ("-" is stdin)`,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			m, err := openImages(g)
			if err != nil {
				return err
			}
			archive := os.Stdin
			if args[0] != "-" {
				if archive, err = os.Open(args[0]); err != nil {
					return err
				}
				defer archive.Close()
			}
			names, err := m.Import(cmd.Context(), archive, name)
			for _, n := range names {
				fmt.Fprintln(cmd.OutOrStdout(), n)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "name of an image that has none in the archive")
	return cmd
}

func newImagesPrune(g *globals) *cobra.Command {
	var age, wait time.Duration
	cmd := &cobra.Command{
		Use:   "prune",
		Short: "Remove the images that no container uses",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := openImages(g)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), wait)
			defer cancel()
			units, err := systemd.NewManager(ctx, systemd.Options{Layout: g.layout, Logger: slog.New(slog.DiscardHandler)})
			if err != nil {
				return fmt.Errorf("find the images in use: %w", err)
			}
			got, err := m.Prune(ctx, func() ([]string, error) { return imagesInUse(ctx, units) }, images.PruneOptions{MinAge: age})
			for _, img := range got.Images {
				fmt.Fprintln(cmd.OutOrStdout(), img)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%d images, %d layers, %d MiB\n", len(got.Images), got.Layers, got.Bytes>>20)
			return err
		},
	}
	cmd.Flags().DurationVar(&age, "older-than", 10*time.Minute, "keep images used less long ago; a crashed container waits up to 5m for its next start")
	cmd.Flags().DurationVar(&wait, "wait", time.Minute, "how long to wait for pulls to end")
	return cmd
}

// imagesInUse asks systemd which images the units run from.
func imagesInUse(ctx context.Context, units *systemd.Manager) ([]string, error) {
	states, err := units.List(ctx)
	if err != nil {
		return nil, err
	}
	out := make([]string, 0, len(states))
	for _, s := range states {
		out = append(out, s.Identity.Image)
	}
	return out, nil
}
