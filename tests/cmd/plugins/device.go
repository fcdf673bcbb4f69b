package main

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// devices are all alike: what a container gets tells which of them it has.
type devices struct {
	deviceapi.UnimplementedDevicePluginServer
	count int
	kinds []string // of CDI
}

// GetDevicePluginOptions asks to be called before a container starts.
func (d *devices) GetDevicePluginOptions(context.Context, *deviceapi.Empty) (*deviceapi.DevicePluginOptions, error) {
	return &deviceapi.DevicePluginOptions{PreStartRequired: true}, nil
}

// ListAndWatch has the same devices for ever.
func (d *devices) ListAndWatch(_ *deviceapi.Empty, stream grpc.ServerStreamingServer[deviceapi.ListAndWatchResponse]) error {
	list := &deviceapi.ListAndWatchResponse{}
	for i := range d.count {
		list.Devices = append(list.Devices, &deviceapi.Device{ID: fmt.Sprintf("dev-%d", i), Health: deviceapi.Healthy})
	}
	if err := stream.Send(list); err != nil {
		return err
	}
	<-stream.Context().Done()
	return nil
}

// Allocate gives the IDs as a variable, and a device for them.
func (d *devices) Allocate(_ context.Context, r *deviceapi.AllocateRequest) (*deviceapi.AllocateResponse, error) {
	answer := &deviceapi.AllocateResponse{}
	for _, c := range r.ContainerRequests {
		fmt.Println("allocate", c.DevicesIds)
		answer.ContainerResponses = append(answer.ContainerResponses, &deviceapi.ContainerAllocateResponse{
			Envs:    map[string]string{"TEST_DEVICES": strings.Join(c.DevicesIds, ",")},
			Devices: []*deviceapi.DeviceSpec{{HostPath: "/dev/full", ContainerPath: "/dev/test-device", Permissions: "rw"}},
			Mounts:  []*deviceapi.Mount{{HostPath: "/etc/hostname", ContainerPath: "/test-mount", ReadOnly: true}},

			CdiDevices: d.qualified(c.DevicesIds),
		})
	}
	return answer, nil
}

// qualified are the devices' names for the Container Device Interface.
func (d *devices) qualified(ids []string) (list []*deviceapi.CDIDevice) {
	for _, kind := range d.kinds {
		for _, id := range ids {
			list = append(list, &deviceapi.CDIDevice{Name: kind + "=" + id})
		}
	}
	return list
}

// PreStartContainer has nothing to do.
func (d *devices) PreStartContainer(_ context.Context, r *deviceapi.PreStartContainerRequest) (*deviceapi.PreStartContainerResponse, error) {
	fmt.Println("pre-start", r.DevicesIds)
	return &deviceapi.PreStartContainerResponse{}, nil
}
