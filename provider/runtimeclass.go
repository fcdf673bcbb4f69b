package provider

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// opHandler finds the runtime handler of the pod's RuntimeClass, which never changes.
const opHandler = "runtime-class"

// runtimeHandler is the handler of the pod; pods without a class cost nothing.
func (w *worker) runtimeHandler(pod *corev1.Pod) *op {
	name := pod.Spec.RuntimeClassName
	if name == nil || *name == "" {
		return &op{done: true, value: ""}
	}
	return w.begin(opHandler, apiRetry, func(ctx context.Context) (any, error) {
		class, err := w.p.deps.Client.NodeV1().RuntimeClasses().Get(ctx, *name, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("failed to lookup RuntimeClass %s: %w", *name, err)
		}
		if !podplan.KnownHandler(class.Handler) {
			return nil, fmt.Errorf("failed to get sandbox runtime: no runtime for %q is configured", class.Handler)
		}
		return class.Handler, nil
	})
}
