// Package workload has what demo, tests and benchmarks run in a cluster and how they
// look at it: a Deployment, waiting, exec, and the question who reaches whom. It must
// not know how the cluster was made.
package workload

import (
	"context"
	"fmt"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/retry"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/tests/registry"
)

// Port is where the Deployment's pods answer HTTP: /hostname, /healthz, /echo.
const Port = 8080

// Web is a Deployment of agnhost pods, spread evenly over the nodes, that are ready
// when they answer. Its update never takes a pod away before another is ready, and a
// pod that ends goes on answering for as long as clients may not know yet.
func Web(namespace, name string, replicas int32) *appsv1.Deployment {
	selector := map[string]string{"app": name}
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: selector},
		Spec: appsv1.DeploymentSpec{
			Replicas: ptr.To(replicas),
			Selector: &metav1.LabelSelector{MatchLabels: selector},
			Strategy: appsv1.DeploymentStrategy{
				Type: appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{
					MaxUnavailable: ptr.To(intstr.FromInt32(0)), MaxSurge: ptr.To(intstr.FromInt32(2)),
				},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: selector},
				Spec: corev1.PodSpec{
					TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{
						MaxSkew: 1, TopologyKey: corev1.LabelHostname, WhenUnsatisfiable: corev1.DoNotSchedule,
						LabelSelector: &metav1.LabelSelector{MatchLabels: selector}, MatchLabelKeys: []string{"pod-template-hash"},
					}},
					TerminationGracePeriodSeconds: ptr.To(int64(15)),
					Containers:                    []corev1.Container{webContainer()},
				},
			},
		},
	}
}

func webContainer() corev1.Container {
	return corev1.Container{
		Name: "web", Image: registry.Agnhost,
		// The delay is how long netexec answers on after a TERM.
		Args:  []string{"netexec", fmt.Sprintf("--http-port=%d", Port), "--delay-shutdown=3"},
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: Port}},
		ReadinessProbe: &corev1.Probe{
			ProbeHandler:  corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/healthz", Port: intstr.FromInt32(Port)}},
			PeriodSeconds: 1,
		},
	}
}

// Apply makes the Deployment or gives the one that is there the same specification.
func Apply(ctx context.Context, client kubernetes.Interface, wanted *appsv1.Deployment) error {
	deployments := client.AppsV1().Deployments(wanted.Namespace)
	_, err := deployments.Create(ctx, wanted, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		return err
	}
	return retry.RetryOnConflict(retry.DefaultBackoff, func() error { // with its controller, which updates its status
		current, err := deployments.Get(ctx, wanted.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		current.Spec = wanted.Spec
		_, err = deployments.Update(ctx, current, metav1.UpdateOptions{})
		return err
	})
}

// WaitRolledOut blocks until every pod of the Deployment is of its last version and
// ready, and none is left over.
func WaitRolledOut(ctx context.Context, client kubernetes.Interface, namespace, name string) error {
	var last string
	err := wait.PollUntilContextCancel(ctx, 100*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		deployment, err := client.AppsV1().Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			last = err.Error()
			return false, nil
		}
		wanted, status := *deployment.Spec.Replicas, deployment.Status
		last = fmt.Sprintf("%d of %d updated, %d ready, %d in all", status.UpdatedReplicas, wanted, status.AvailableReplicas, status.Replicas)
		if status.ObservedGeneration < deployment.Generation || status.UpdatedReplicas != wanted ||
			status.AvailableReplicas != wanted || status.Replicas != wanted {
			return false, nil
		}
		pods, err := Pods(ctx, client, namespace, name)
		last = fmt.Sprintf("%d pods, %d wanted", len(pods), wanted)
		return err == nil && len(pods) == int(wanted), nil
	})
	if err != nil {
		return fmt.Errorf("wait for deployment %s: %w: %s", name, err, last)
	}
	return nil
}

// Pods lists the Deployment's pods, those that end included.
func Pods(ctx context.Context, client kubernetes.Interface, namespace, name string) ([]corev1.Pod, error) {
	list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{"app": name}.String(),
	})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", name, err)
	}
	return list.Items, nil
}
