// Command plugins is a CSI driver, a device plugin and a DRA driver for tests: as simple as can be, made
// from the interfaces' own modules, and registered with the node as any is.
//
//	plugins csi NAME DATA      volumes are directories below DATA, mounted by bind
//	plugins device RESOURCE N [KIND]
//	                           N devices, all of them /dev/full; with KIND also the CDI devices
//	                           KIND=ID
//	plugins dra DRIVER DIRECTORY
//	                           a device of each ResourceClaim, with its CDI specification in DIRECTORY
package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"
)

const registry = "/var/lib/kubelet/plugins_registry"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) != 3 && len(args) != 4 {
		return fmt.Errorf("usage: plugins csi NAME DATA, plugins device RESOURCE N [KIND], or plugins dra DRIVER DIRECTORY")
	}
	server := grpc.NewServer()
	info := &registerapi.PluginInfo{Name: args[1]}
	switch args[0] {
	case "csi":
		info.Type, info.SupportedVersions = registerapi.CSIPlugin, []string{"1.9.0"}
		csispec.RegisterNodeServer(server, &csiNode{data: args[2]})
	case "device":
		count, err := strconv.Atoi(args[2])
		if err != nil {
			return fmt.Errorf("read number of devices: %w", err)
		}
		info.Type, info.SupportedVersions = registerapi.DevicePlugin, []string{deviceapi.Version}
		deviceapi.RegisterDevicePluginServer(server, &devices{count: count, kinds: args[3:]})
	case "dra":
		info.Type, info.SupportedVersions = registerapi.DRAPlugin, []string{drav1.DRAPluginService}
		drav1.RegisterDRAPluginServer(server, &claims{driver: args[1], specs: args[2]})
	default:
		return fmt.Errorf("there is no plugin %q", args[0])
	}
	registerapi.RegisterRegistrationServer(server, registration{info: info})
	socket := filepath.Join(registry, args[0]+".sock")
	_ = os.Remove(socket) // of one that was killed
	listener, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	context.AfterFunc(ctx, server.Stop)
	return server.Serve(listener)
}

// registration tells the node who we are; everything is served on one socket.
type registration struct {
	registerapi.UnimplementedRegistrationServer
	info *registerapi.PluginInfo
}

func (r registration) GetInfo(context.Context, *registerapi.InfoRequest) (*registerapi.PluginInfo, error) {
	return r.info, nil
}

func (r registration) NotifyRegistrationStatus(_ context.Context, s *registerapi.RegistrationStatus) (*registerapi.RegistrationStatusResponse, error) {
	fmt.Println("registered:", s.PluginRegistered, s.Error)
	return &registerapi.RegistrationStatusResponse{}, nil
}
