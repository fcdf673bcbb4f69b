package provider

import (
	"context"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestRuntimeClasses: a pod has its class's handler, and one whose handler is unknown waits
// for another and says why.
func TestRuntimeClasses(t *testing.T) {
	w := newWorld(t)
	for name, handler := range map[string]string{"narrow": "strict", "usual": "systemd", "odd": "gvisor"} {
		class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Handler: handler}
		if _, err := w.client.NodeV1().RuntimeClasses().Create(context.Background(), class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		classed := func(class, container string) func(*corev1.Pod) {
			return func(p *corev1.Pod) { p.Spec.RuntimeClassName, p.Spec.Containers[0].Name = &class, container }
		}
		w.create("a", classed("narrow", "narrow"))
		w.create("b", classed("usual", "usual"))
		w.create("c", classed("odd", "odd"))
		w.create("d", classed("none", "none"))
		w.until("known handlers run", func() bool { return w.podIs("a", corev1.PodRunning)() && w.podIs("b", corev1.PodRunning)() })
		if !w.launched("narrow").NoNewPrivileges || w.launched("usual").NoNewPrivileges {
			t.Error("the handlers are not the classes'")
		}
		for _, want := range []string{`no runtime for "gvisor" is configured`, "failed to lookup RuntimeClass none"} {
			w.until(want, func() bool {
				return slices.ContainsFunc(w.events, func(e string) bool {
					return strings.Contains(e, "FailedCreatePodSandBox") && strings.Contains(e, want)
				})
			})
		}
		for name, want := range map[string]corev1.ConditionStatus{"a": corev1.ConditionTrue, "c": corev1.ConditionFalse, "d": corev1.ConditionFalse} {
			w.until(name+" told of its sandbox", func() bool {
				pod, _ := w.get(name)
				return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
					return c.Type == corev1.PodReadyToStartContainers && c.Status == want
				}) && (pod.Status.PodIP != "") == (want == corev1.ConditionTrue)
			})
		}
		if w.runs("odd") || w.runs("none") {
			t.Error("a container runs without the runtime that its pod asks for")
		}
	})
}
