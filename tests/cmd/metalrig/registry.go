package main

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/registry"
)

// registryCommand is the process behind registry.Up.
func registryCommand() *cobra.Command {
	cfg := registry.ServeConfig{
		Users: map[string]string{registry.PrivateUser: registry.PrivatePassword},
		Log:   slog.New(slog.NewTextHandler(os.Stdout, nil)),
	}
	serve := &cobra.Command{
		Use: "serve", Short: "Serve images in the foreground", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return registry.Serve(cmd.Context(), cfg) },
	}
	flags := serve.Flags()
	flags.StringSliceVar(&cfg.Layouts, "layout", nil, "OCI layout with images to serve")
	flags.StringVar(&cfg.Store, "store", "", "directory for blobs")
	flags.StringVar(&cfg.HTTP, "http", ":5000", "address of the open mirror")
	flags.StringVar(&cfg.HTTPS, "https", ":5001", "address of the registry that asks for tokens")
	flags.StringVar(&cfg.Cert, "cert", "", "certificate for https")
	flags.StringVar(&cfg.Key, "key", "", "key for https")
	parent := &cobra.Command{Use: "registry", Short: "The rig's image registry", Hidden: true}
	parent.AddCommand(serve)
	return parent
}

func imagesCommand() *cobra.Command {
	var upstream bool
	cmd := &cobra.Command{
		Use: "images", Short: "Build the container images and print the OCI layout they are in", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := artifacts.NewStore("", progress.New(cmd.ErrOrStderr()))
			if err != nil {
				return err
			}
			make := registry.Images
			if upstream {
				make = registry.UpstreamImages
			}
			dir, err := make(cmd.Context(), store)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), dir)
			return err
		},
	}
	cmd.Flags().BoolVar(&upstream, "upstream", false, "those that only upstream's suite needs")
	return cmd
}
