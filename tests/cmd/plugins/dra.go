package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	drav1 "k8s.io/kubelet/pkg/apis/dra/v1"
)

// claims makes a CDI device of each ResourceClaim, in a specification of its own: what a
// container gets tells which claim it has.
type claims struct {
	drav1.UnimplementedDRAPluginServer
	driver, specs string
}

func (c *claims) spec(uid string) string { return filepath.Join(c.specs, c.driver+"-"+uid+".yaml") }

// NodePrepareResources writes the specification; it may be called again.
func (c *claims) NodePrepareResources(_ context.Context, r *drav1.NodePrepareResourcesRequest) (*drav1.NodePrepareResourcesResponse, error) {
	answer := &drav1.NodePrepareResourcesResponse{Claims: map[string]*drav1.NodePrepareResourceResponse{}}
	for _, claim := range r.Claims {
		fmt.Println("prepare", claim.Name)
		text := fmt.Sprintf("cdiVersion: 0.7.0\nkind: %s/claim\ndevices: [{name: %s, containerEdits: {env: [DRA_CLAIM=%s]}}]\n", c.driver, claim.Uid, claim.Name)
		result := &drav1.NodePrepareResourceResponse{Devices: []*drav1.Device{{
			PoolName: "pool", DeviceName: "device", CdiDeviceIds: []string{c.driver + "/claim=" + claim.Uid},
		}}}
		if err := os.WriteFile(c.spec(claim.Uid), []byte(text), 0o644); err != nil {
			result = &drav1.NodePrepareResourceResponse{Error: err.Error()}
		}
		answer.Claims[claim.Uid] = result
	}
	return answer, nil
}

// NodeUnprepareResources removes it; it may be called for what was never prepared.
func (c *claims) NodeUnprepareResources(_ context.Context, r *drav1.NodeUnprepareResourcesRequest) (*drav1.NodeUnprepareResourcesResponse, error) {
	answer := &drav1.NodeUnprepareResourcesResponse{Claims: map[string]*drav1.NodeUnprepareResourceResponse{}}
	for _, claim := range r.Claims {
		fmt.Println("unprepare", claim.Name)
		answer.Claims[claim.Uid] = &drav1.NodeUnprepareResourceResponse{}
		if err := os.Remove(c.spec(claim.Uid)); err != nil && !os.IsNotExist(err) {
			answer.Claims[claim.Uid].Error = err.Error()
		}
	}
	return answer, nil
}
