package main

import (
	"log/slog"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/vk-metal/vk-metal/tests/cluster/controlplane"
)

// controllerCommand is what a cluster's owner brings besides upstream's control
// plane: approval of serving certificates and the control plane's routes to pods.
func controllerCommand() *cobra.Command {
	var kubeconfig string
	cmd := &cobra.Command{
		Use: "controller", Short: "The rig's own controller", Hidden: true, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
			if err != nil {
				return err
			}
			client, err := kubernetes.NewForConfig(config)
			if err != nil {
				return err
			}
			log := slog.New(slog.NewTextHandler(os.Stdout, nil))
			group, ctx := errgroup.WithContext(cmd.Context())
			group.Go(func() error { return controlplane.ApproveServing(ctx, client, log) })
			group.Go(func() error { return controlplane.KeepRoutes(ctx, client, log) })
			return group.Wait()
		},
	}
	cmd.Flags().StringVar(&kubeconfig, "kubeconfig", "", "administrator's kubeconfig")
	return cmd
}
