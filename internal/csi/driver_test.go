package csi

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// testDriver is a CSI driver that keeps volumes in directories of the host and mounts them by
// bind. What it was asked is in calls.
type testDriver struct {
	csispec.UnimplementedNodeServer
	socket string
	data   string // a directory for each volume
	can    []csispec.NodeServiceCapability_RPC_Type

	mu        sync.Mutex
	most      int64 // volumes on the node
	calls     []string
	fail      map[string]error // by method, once
	published []*csispec.NodePublishVolumeRequest
	staged    []*csispec.NodeStageVolumeRequest
	expanded  []*csispec.NodeExpandVolumeRequest
}

// newDriver serves until the test ends.
func newDriver(t *testing.T, can ...csispec.NodeServiceCapability_RPC_Type) *testDriver {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root")
		}
		t.Skip("needs root")
	}
	dir, err := os.MkdirTemp("/tmp", "csi") // sockets' names are short
	if err != nil {
		t.Fatal(err)
	}
	d := &testDriver{socket: filepath.Join(dir, "csi.sock"), data: filepath.Join(dir, "data"), can: can, most: 7, fail: map[string]error{}}
	listener, err := net.Listen("unix", d.socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	csispec.RegisterNodeServer(server, d)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		<-done
		os.RemoveAll(dir)
	})
	return d
}

// called notes a call, and returns the failure that it is to have.
func (d *testDriver) called(method, detail string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.calls = append(d.calls, strings.TrimSpace(method+" "+detail))
	err := d.fail[method]
	delete(d.fail, method)
	return err
}

// takeVolumes sets how many volumes the node takes.
func (d *testDriver) takeVolumes(most int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.most = most
}

// take returns and forgets the calls so far.
func (d *testDriver) take() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	calls := d.calls
	d.calls = nil
	return calls
}

func (d *testDriver) NodeGetInfo(context.Context, *csispec.NodeGetInfoRequest) (*csispec.NodeGetInfoResponse, error) {
	d.mu.Lock()
	most := d.most
	d.mu.Unlock()
	return &csispec.NodeGetInfoResponse{
		NodeId: "id-of-n1", MaxVolumesPerNode: most, AccessibleTopology: &csispec.Topology{Segments: map[string]string{"example.com/rack": "r1"}},
	}, d.called("info", "")
}

func (d *testDriver) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	answer := &csispec.NodeGetCapabilitiesResponse{}
	for _, c := range d.can {
		answer.Capabilities = append(answer.Capabilities, &csispec.NodeServiceCapability{
			Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return answer, nil
}

func bind(from, to string) error {
	if err := os.MkdirAll(from, 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	return unix.Mount(from, to, "", unix.MS_BIND, "")
}

func unbind(path string) error {
	if err := unix.Unmount(path, 0); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return err
	}
	err := os.Remove(path)
	if os.IsNotExist(err) {
		return nil
	}
	return err
}

func (d *testDriver) NodeStageVolume(_ context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	if err := d.called("stage", r.VolumeId); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.staged = append(d.staged, r)
	d.mu.Unlock()
	return &csispec.NodeStageVolumeResponse{}, bind(filepath.Join(d.data, r.VolumeId), r.StagingTargetPath)
}

func (d *testDriver) NodeUnstageVolume(_ context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	if err := d.called("unstage", r.VolumeId); err != nil {
		return nil, err
	}
	return &csispec.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

func (d *testDriver) NodePublishVolume(_ context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	if err := d.called("publish", r.VolumeId); err != nil {
		return nil, err
	}
	d.mu.Lock()
	again := slices.ContainsFunc(d.published, func(p *csispec.NodePublishVolumeRequest) bool { return p.TargetPath == r.TargetPath })
	d.published = append(d.published, r)
	d.mu.Unlock()
	if again {
		return &csispec.NodePublishVolumeResponse{}, nil
	}
	from := r.StagingTargetPath
	if from == "" {
		from = filepath.Join(d.data, r.VolumeId)
	}
	return &csispec.NodePublishVolumeResponse{}, bind(from, r.TargetPath)
}

func (d *testDriver) NodeUnpublishVolume(_ context.Context, r *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	if err := d.called("unpublish", r.VolumeId); err != nil {
		return nil, err
	}
	d.mu.Lock()
	d.published = slices.DeleteFunc(d.published, func(p *csispec.NodePublishVolumeRequest) bool { return p.TargetPath == r.TargetPath })
	d.mu.Unlock()
	return &csispec.NodeUnpublishVolumeResponse{}, unbind(r.TargetPath)
}

func (d *testDriver) NodeExpandVolume(_ context.Context, r *csispec.NodeExpandVolumeRequest) (*csispec.NodeExpandVolumeResponse, error) {
	d.mu.Lock()
	d.expanded = append(d.expanded, r)
	d.mu.Unlock()
	return &csispec.NodeExpandVolumeResponse{CapacityBytes: r.CapacityRange.RequiredBytes}, d.called("expand", fmt.Sprint(r.CapacityRange.RequiredBytes))
}

func (d *testDriver) NodeGetVolumeStats(_ context.Context, r *csispec.NodeGetVolumeStatsRequest) (*csispec.NodeGetVolumeStatsResponse, error) {
	if _, err := os.Stat(r.VolumePath); err != nil {
		return nil, status.Error(codes.NotFound, err.Error())
	}
	return &csispec.NodeGetVolumeStatsResponse{Usage: []*csispec.VolumeUsage{
		{Unit: csispec.VolumeUsage_BYTES, Total: 100, Used: 40, Available: 60}, {Unit: csispec.VolumeUsage_INODES, Total: 10, Used: 1, Available: 9},
	}}, d.called("stats", "")
}
