package csi

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/retry"
)

// nodeIDs is the Node's annotation with the drivers' names for this node, as JSON.
const nodeIDs = "csi.volume.kubernetes.io/nodeid"

// announce tells the cluster what the driver calls this node, where it is and how many volumes
// it takes.
func (m *Manager) announce(ctx context.Context, name string, info *csispec.NodeGetInfoResponse) error {
	if info.GetNodeId() == "" {
		return fmt.Errorf("announce CSI driver %s: it has no ID for this node", name)
	}
	m.node.Lock()
	defer m.node.Unlock()
	segments := info.GetAccessibleTopology().GetSegments()
	node, err := m.patchNode(ctx, func(ids map[string]string) { ids[name] = info.GetNodeId() }, segments)
	if err != nil {
		return fmt.Errorf("announce CSI driver %s in Node: %w", name, err)
	}
	entry := storagev1.CSINodeDriver{
		Name: name, NodeID: info.GetNodeId(), TopologyKeys: slices.Sorted(maps.Keys(segments)), Allocatable: allocatable(info),
	}
	err = m.changeCSINode(ctx, node, func(list []storagev1.CSINodeDriver) []storagev1.CSINodeDriver {
		return append(without(list, name), entry)
	})
	if err != nil {
		return fmt.Errorf("announce CSI driver %s in CSINode: %w", name, err)
	}
	return nil
}

// withdraw undoes announce; topology labels stay, as with a kubelet: volumes may need them.
func (m *Manager) withdraw(ctx context.Context, name string) error {
	m.node.Lock()
	defer m.node.Unlock()
	node, err := m.patchNode(ctx, func(ids map[string]string) { delete(ids, name) }, nil)
	if err != nil {
		return err
	}
	return m.changeCSINode(ctx, node, func(list []storagev1.CSINodeDriver) []storagev1.CSINodeDriver { return without(list, name) })
}

func without(list []storagev1.CSINodeDriver, name string) []storagev1.CSINodeDriver {
	return slices.DeleteFunc(slices.Clone(list), func(d storagev1.CSINodeDriver) bool { return d.Name == name })
}

// patchNode changes the annotation and adds labels. A label that says otherwise is an error: two
// drivers, or an administrator, disagree about where the node is.
func (m *Manager) patchNode(ctx context.Context, change func(map[string]string), labels map[string]string) (node *corev1.Node, err error) {
	err = retry.RetryOnConflict(retry.DefaultRetry, func() error {
		node, err = m.o.Client.CoreV1().Nodes().Get(ctx, m.o.NodeName, metav1.GetOptions{})
		if err != nil {
			return err
		}
		patch, err := nodePatch(node, change, labels)
		if err != nil || patch == nil {
			return err
		}
		_, err = m.o.Client.CoreV1().Nodes().Patch(ctx, m.o.NodeName, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
		return err
	})
	return node, err
}

// nodePatch is nil when there is nothing to change.
func nodePatch(node *corev1.Node, change func(map[string]string), labels map[string]string) ([]byte, error) {
	ids := map[string]string{}
	before := node.Annotations[nodeIDs]
	if before != "" {
		if err := json.Unmarshal([]byte(before), &ids); err != nil {
			return nil, fmt.Errorf("read annotation %s: %w", nodeIDs, err)
		}
	}
	change(ids)
	after, err := json.Marshal(ids)
	if err != nil {
		return nil, err
	}
	same := before == string(after) || before == "" && len(ids) == 0
	for key, value := range labels {
		has, ok := node.Labels[key]
		if ok && has != value {
			return nil, fmt.Errorf("detected topology value collision: driver reported %q:%q but existing label is %q:%q", key, value, key, has)
		}
		same = same && ok
	}
	if same {
		return nil, nil
	}
	annotation := any(string(after))
	if len(ids) == 0 {
		annotation = nil
	}
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": node.ResourceVersion, "labels": labels, "annotations": map[string]any{nodeIDs: annotation},
	}})
}
