package main

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
	podresourcesapi "k8s.io/kubelet/pkg/apis/podresources/v1"

	"github.com/vk-metal/vk-metal/internal/claims"
	"github.com/vk-metal/vk-metal/internal/csi"
	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/internal/plugins"
	"github.com/vk-metal/vk-metal/internal/task"
)

// newPlugins makes what plugins of the node need, and what finds them.
func (a *agent) newPlugins() (tasks []task.Task, err error) {
	if err := plugins.MakeDirs(a.g.layout); err != nil {
		return nil, err
	}
	a.pods.csi, err = csi.New(csi.Options{
		NodeName: a.name, Layout: a.g.layout, Client: a.client, DriversChanged: a.retryVolumes, InUseChanged: a.node.Changed, Log: a.log,
	})
	if err != nil {
		return nil, err
	}
	a.pods.devices, err = devices.New(devices.Options{Layout: a.g.layout, Changed: a.node.Changed, Pods: a.knownPods, Claimed: a.claimed, Log: a.log})
	if err != nil {
		return nil, err
	}
	a.pods.claims, err = claims.New(claims.Options{Layout: a.g.layout, NodeName: a.name, Client: a.client, Log: a.log})
	if err != nil {
		return nil, err
	}
	watcher := plugins.New(plugins.Options{Dir: a.g.layout.PluginSockets(), Log: a.log, Handlers: map[string]plugins.Handler{
		registerapi.CSIPlugin: a.pods.csi, registerapi.DevicePlugin: a.pods.devices, registerapi.DRAPlugin: a.pods.claims,
	}})
	return []task.Task{watcher, task.New("devices", a.pods.devices.Run), task.New("claims", a.pods.claims.Run), task.New("csi", func(ctx context.Context, ready func()) error {
		ready()
		defer a.pods.csi.Close()
		return a.pods.csi.Run(ctx)
	})}, nil
}

// retryVolumes has volumes tried again that could not be had.
func (a *agent) retryVolumes() {
	if p := a.pods.provider; p != nil {
		p.RetryVolumes()
	}
}

// knownPods are the pods of this node.
func (a *agent) knownPods() []*corev1.Pod {
	if a.pods.provider == nil {
		return nil
	}
	return a.pods.provider.Pods()
}

// claimed are the devices of a container's ResourceClaims.
func (a *agent) claimed(pod *corev1.Pod, c *corev1.Container) []*podresourcesapi.DynamicResource {
	return a.pods.claims.Resources(pod, c)
}

// deviceResources are those of device plugins, none before there can be any.
func (a *agent) deviceResources() (capacity, allocatable corev1.ResourceList) {
	if a.pods.devices == nil {
		return nil, nil
	}
	return a.pods.devices.Resources()
}

// volumesInUse is told in the Node's status, which is looked at before there are plugins, too.
func (a *agent) volumesInUse() []corev1.UniqueVolumeName {
	if a.pods.csi == nil {
		return nil
	}
	return a.pods.csi.InUse()
}
