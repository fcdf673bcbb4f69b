package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/internal/loadbalancer"
)

// leaseName is the Lease that the replicas contend for.
const leaseName = "vk-metal-controller"

// controllerOptions are the flags of vk-metal controller.
type controllerOptions struct {
	kubeconfig, pools, namespace string
	all                          bool
}

func newController() *cobra.Command {
	o := controllerOptions{}
	cmd := &cobra.Command{
		Use:   "controller",
		Short: "Give addresses of pools to LoadBalancer Services (one active per cluster)",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "credentials; empty uses the pod's service account")
	f.StringVar(&o.pools, "pools", "kube-system/vk-metal-pools", "namespace/name of the ConfigMap of address pools")
	f.StringVar(&o.namespace, "lease-namespace", "kube-system", "namespace of the Lease that the replicas contend for")
	f.BoolVar(&o.all, "default", true, "take Services without a loadBalancerClass as well")
	return cmd
}

var errLeaseLost = errors.New("another replica took the lease")

// run contends for the lease and works while it is held. Losing it ends the process.
func (o controllerOptions) run(ctx context.Context) error {
	log := newLogger(&slog.LevelVar{})
	namespace, name, both := strings.Cut(o.pools, "/")
	if !both {
		return fmt.Errorf("--pools %q must be namespace/name", o.pools)
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return fmt.Errorf("find credentials: %w", err)
	}
	config.UserAgent = "vk-metal-controller"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("make API client: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host name: %w", err)
	}
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	defer broadcaster.Shutdown()
	controller := loadbalancer.New(loadbalancer.Options{
		Client: client, Namespace: namespace, ConfigMap: name, All: o.all, Log: log,
		Recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "vk-metal-controller"}),
	})
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: o.namespace, Name: leaseName},
		Client:     client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}
	return lead(ctx, lock, controller.Run)
}

// lead runs work while the lease is held, and returns when either ends.
func lead(ctx context.Context, lock resourcelock.Interface, work func(context.Context) error) error {
	inner, cancel := context.WithCancel(ctx)
	defer cancel()
	done := make(chan error, 1)
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Lock: lock, LeaseDuration: 15 * time.Second, RenewDeadline: 10 * time.Second, RetryPeriod: 2 * time.Second, Name: leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				done <- work(ctx)
				cancel()
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("contend for the lease: %w", err)
	}
	elector.Run(inner)
	cancel()
	select {
	case err = <-done:
	case <-time.After(leaseGrace):
	}
	if ctx.Err() != nil {
		return nil
	}
	return errors.Join(err, errLeaseLost)
}

// leaseGrace is how long the work may take to end once its context has.
const leaseGrace = 3 * time.Second
