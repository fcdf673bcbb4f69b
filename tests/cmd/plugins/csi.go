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

// NodeGetCapabilities has staging, figures and growth.
func (n *csiNode) NodeGetCapabilities(context.Context, *csispec.NodeGetCapabilitiesRequest) (*csispec.NodeGetCapabilitiesResponse, error) {
	answer := &csispec.NodeGetCapabilitiesResponse{}
	for _, c := range []csispec.NodeServiceCapability_RPC_Type{
		csispec.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME, csispec.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csispec.NodeServiceCapability_RPC_EXPAND_VOLUME,
	} {
		answer.Capabilities = append(answer.Capabilities, &csispec.NodeServiceCapability{
			Type: &csispec.NodeServiceCapability_Rpc{Rpc: &csispec.NodeServiceCapability_RPC{Type: c}},
		})
	}
	return answer, nil
}

// NodeStageVolume mounts the volume for the node, or attaches its disk.
func (n *csiNode) NodeStageVolume(_ context.Context, r *csispec.NodeStageVolumeRequest) (*csispec.NodeStageVolumeResponse, error) {
	fmt.Println("stage", r.VolumeId)
	if r.VolumeCapability.GetBlock() != nil {
		_, err := attach(n.disk(r.VolumeId))
		return &csispec.NodeStageVolumeResponse{}, err
	}
	return &csispec.NodeStageVolumeResponse{}, bind(filepath.Join(n.data, r.VolumeId), r.StagingTargetPath)
}

// NodeUnstageVolume undoes it.
func (n *csiNode) NodeUnstageVolume(_ context.Context, r *csispec.NodeUnstageVolumeRequest) (*csispec.NodeUnstageVolumeResponse, error) {
	fmt.Println("unstage", r.VolumeId)
	if err := detach(n.disk(r.VolumeId)); err != nil {
		return nil, err
	}
	return &csispec.NodeUnstageVolumeResponse{}, unbind(r.StagingTargetPath)
}

// NodePublishVolume mounts the volume for a pod. One that is ephemeral lives in its target.
func (n *csiNode) NodePublishVolume(_ context.Context, r *csispec.NodePublishVolumeRequest) (*csispec.NodePublishVolumeResponse, error) {
	fmt.Println("publish", r.VolumeId)
	if r.VolumeCapability.GetBlock() != nil {
		device, err := attached(n.disk(r.VolumeId))
		if err != nil {
			return nil, err
		}
		return &csispec.NodePublishVolumeResponse{}, bindDevice(device, r.TargetPath)
	}
	from := r.StagingTargetPath
	if from == "" {
		from = filepath.Join(n.data, r.VolumeId)
	}
	if err := bind(from, r.TargetPath); err != nil {
		return nil, err
	}
	return &csispec.NodePublishVolumeResponse{}, tell(r.TargetPath, map[string]string{
		"pod": r.VolumeContext["csi.storage.k8s.io/pod.name"], "tokens": r.VolumeContext["csi.storage.k8s.io/serviceAccount.tokens"],
		"context": r.PublishContext["test"],
	})
}

// tell writes what the driver was told into the volume, for the test in its pod.
func tell(dir string, files map[string]string) error {
	for name, content := range files {
		if content == "" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// NodeExpandVolume says how large the volume is now.
func (n *csiNode) NodeExpandVolume(_ context.Context, r *csispec.NodeExpandVolumeRequest) (*csispec.NodeExpandVolumeResponse, error) {
	size := r.CapacityRange.GetRequiredBytes()
	return &csispec.NodeExpandVolumeResponse{CapacityBytes: size}, tell(r.VolumePath, map[string]string{"size": fmt.Sprint(size)})
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
