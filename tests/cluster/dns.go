package cluster

import (
	"context"
	_ "embed" // for the manifest
	"fmt"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
)

//go:embed manifests/coredns.yaml
var corednsManifest []byte

const (
	dnsName    = "coredns"
	dnsTimeout = 3 * time.Minute
)

// startDNS runs CoreDNS in the cluster and waits until all of it is ready.
func (c *Cluster) startDNS(ctx context.Context) error {
	step := c.progress.Step("start CoreDNS in the cluster")
	if err := c.ControlPlane.Apply(ctx, corednsManifest); err != nil {
		return step.Done(err)
	}
	var last string
	err := wait.PollUntilContextTimeout(ctx, 200*time.Millisecond, dnsTimeout, true, func(ctx context.Context) (bool, error) {
		deployment, err := c.Client.AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, dnsName, metav1.GetOptions{})
		if err != nil {
			last = err.Error()
			return false, nil
		}
		status := deployment.Status
		last = fmt.Sprintf("%d of %d replicas are ready", status.ReadyReplicas, *deployment.Spec.Replicas)
		return status.ObservedGeneration >= deployment.Generation && status.ReadyReplicas == *deployment.Spec.Replicas &&
			status.UpdatedReplicas == *deployment.Spec.Replicas, nil
	})
	if err != nil {
		err = fmt.Errorf("wait for CoreDNS: %w: %s", err, last)
	}
	return step.Done(err)
}
