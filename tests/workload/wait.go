package workload

import (
	"context"
	"errors"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	toolswatch "k8s.io/client-go/tools/watch"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/cache"
)

// errDeleted ends a wait for a pod that has gone.
var errDeleted = errors.New("the pod was deleted")

// WaitPod watches the pod, over lost connections, too, until missing says "" of it. It
// returns the pod as last seen and what was missing then.
func WaitPod(ctx context.Context, client kubernetes.Interface, namespace, name string, missing func(*corev1.Pod) string) (*corev1.Pod, string, error) {
	only := fields.OneTermEqualSelector("metadata.name", name).String()
	pods := client.CoreV1().Pods(namespace)
	source := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = only
			return pods.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = only
			return pods.Watch(ctx, options)
		},
	}
	last, why := (*corev1.Pod)(nil), "not there"
	_, err := toolswatch.UntilWithSync(ctx, source, &corev1.Pod{}, nil, func(event watch.Event) (bool, error) {
		pod, ok := event.Object.(*corev1.Pod)
		if !ok {
			return false, nil
		}
		last, why = pod, missing(pod)
		if event.Type == watch.Deleted {
			return false, errDeleted
		}
		return why == "", nil
	})
	return last, why, err
}
