package node

import (
	"context"
	"encoding/json"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
)

// nodeClient is what virtual-kubelet's node controller writes through.
type nodeClient struct {
	typedcorev1.NodeInterface
	latest func() *corev1.Node
}

// Patch mends status patches that touch addresses: their merge key is the type, which a
// dual-stack node has twice, so a strategic merge would mix the two (kubernetes#79391).
func (c nodeClient) Patch(ctx context.Context, name string, kind types.PatchType, data []byte, opts metav1.PatchOptions, sub ...string) (*corev1.Node, error) {
	if kind == types.StrategicMergePatchType {
		mended, err := replaceAddresses(data, c.latest().Status.Addresses)
		if err != nil {
			return nil, err
		}
		data = mended
	}
	return c.NodeInterface.Patch(ctx, name, kind, data, opts, sub...)
}

// replaceAddresses makes a patch that changes status.addresses set the whole list.
func replaceAddresses(patch []byte, addresses []corev1.NodeAddress) ([]byte, error) {
	var whole, status map[string]json.RawMessage
	if err := json.Unmarshal(patch, &whole); err != nil {
		return nil, fmt.Errorf("decode node patch: %w", err)
	}
	if len(whole["status"]) == 0 || json.Unmarshal(whole["status"], &status) != nil {
		return patch, nil //nolint:nilerr // not ours to judge: the API server says what is wrong
	}
	_, touched := status["addresses"]
	_, ordered := status["$setElementOrder/addresses"]
	if !touched && !ordered {
		return patch, nil
	}
	delete(status, "$setElementOrder/addresses")
	list := []any{map[string]string{"$patch": "replace"}}
	for _, address := range addresses {
		list = append(list, address)
	}
	var err error
	if status["addresses"], err = json.Marshal(list); err != nil {
		return nil, fmt.Errorf("encode node addresses: %w", err)
	}
	if whole["status"], err = json.Marshal(status); err != nil {
		return nil, fmt.Errorf("encode node patch: %w", err)
	}
	return json.Marshal(whole)
}
