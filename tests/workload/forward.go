package workload

import (
	"context"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
)

// Forward forwards free ports of this host's loopback interface to ports of the pod, as
// kubectl port-forward does, until stop is called. It returns this host's port for each of
// the pod's. ctx bounds the start only.
func Forward(ctx context.Context, config *rest.Config, pod *corev1.Pod, remote ...int) (ports map[int]int, stop func(), err error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		return nil, nil, fmt.Errorf("forward to %s: %w", pod.Name, err)
	}
	url := client.CoreV1().RESTClient().Post().
		Resource("pods").Namespace(pod.Namespace).Name(pod.Name).SubResource("portforward").URL()
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	wanted := make([]string, 0, len(remote))
	for _, port := range remote {
		wanted = append(wanted, fmt.Sprintf("0:%d", port))
	}
	end, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, wanted, end, ready, io.Discard, io.Discard)
	if err != nil {
		return nil, nil, fmt.Errorf("forward to %s: %w", pod.Name, err)
	}
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-done:
		return nil, nil, fmt.Errorf("forward to %s: %w", pod.Name, err)
	case <-ctx.Done():
		close(end)
		return nil, nil, fmt.Errorf("forward to %s: %w", pod.Name, ctx.Err())
	}
	ports = map[int]int{}
	forwarded, err := forwarder.GetPorts()
	for _, port := range forwarded {
		ports[int(port.Remote)] = int(port.Local)
	}
	return ports, func() { close(end) }, err
}
