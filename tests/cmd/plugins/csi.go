package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"
)

// csiNode keeps volumes in directories of the host.
type csiNode struct {
	csispec.UnimplementedNodeServer
	data string
}

// NodeGetInfo says where the volumes are: on this node.
func (n *csiNode) NodeGetInfo(context.Context, *csispec.NodeGetInfoRequest) (*csispec.NodeGetInfoResponse, error) {
	name, err := os.Hostname()
	return &csispec.NodeGetInfoResponse{
		NodeId: name, MaxVolumesPerNode: 8, AccessibleTopology: &csispec.Topology{Segments: map[string]string{"test.example.com/node": name}},
	}, err
}

// NodeGetCapabilities has staging and figures.
func (n *csiNode) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	answer := &csispec.NodeGetCapabilitiesResponse{}
	for _, c := range []csispec.NodeServiceCapability_RPC_Type{
		csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
	} {
		answer.Capabilities = append(answer.Capabilities, &csispec.NodeServiceCapability{
			Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return answer, nil
}

// NodeStageVolume mounts the volume for the node.
func (n *csiNode) NodeStageVolume(_ context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	fmt.Println("stage", r.VolumeId)
	return &csispec.NodeStageVolumeResponse{}, bind(filepath.Join(n.data, r.VolumeId), r.StagingTargetPath)
}

// NodeUnstageVolume undoes it.
func (n *csiNode) NodeUnstageVolume(_ context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	fmt.Println("unstage", r.VolumeId)
	return &csispec.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

// NodePublishVolume mounts the volume for a pod. One that is ephemeral lives in its target.
func (n *csiNode) NodePublishVolume(_ context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	fmt.Println("publish", r.VolumeId)
	from := r.StagingTargetPath
	if from == "" {
		from = filepath.Join(n.data, r.VolumeId)
	}
	if err := bind(from, r.TargetPath); err != nil {
		return nil, err
	}
	if name := r.VolumeContext["csi.storage.k8s.io/pod.name"]; name != "" {
		return &csispec.NodePublishVolumeResponse{}, os.WriteFile(filepath.Join(r.TargetPath, "pod"), []byte(name), 0o644)
	}
	return &csispec.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume undoes it.
func (n *csiNode) NodeUnpublishVolume(_ context.Context, r *csispec.NodeUnpublishVolumeRequest) (*csispec.NodeUnpublishVolumeResponse, error) {
	fmt.Println("unpublish", r.VolumeId)
	return &csispec.NodeUnpublishVolumeResponse{}, unbind(r.TargetPath)
}

// NodeGetVolumeStats has figures that are easily told from a file system's.
func (n *csiNode) NodeGetVolumeStats(context.Context, *csispec.NodeGetVolumeStatsRequest) (*csispec.NodeGetVolumeStatsResponse, error) {
	return &csispec.NodeGetVolumeStatsResponse{Usage: []*csispec.VolumeUsage{{Unit: csispec.VolumeUsage_BYTES, Total: 1234567, Used: 1, Available: 1234566}}}, nil
}

// bind is repeated as the interface asks: what is mounted stays.
func bind(from, to string) error {
	for _, dir := range []string{from, to} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if mounted(to) {
		return nil
	}
	return unix.Mount(from, to, "", unix.MS_BIND, "")
}

func mounted(path string) bool {
	var st unix.Statx_t
	return unix.Statx(unix.AT_FDCWD, path, 0, 0, &st) == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func unbind(path string) error {
	if mounted(path) {
		if err := unix.Unmount(path, 0); err != nil {
			return err
		}
	}
	err := os.Remove(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
