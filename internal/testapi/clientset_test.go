package testapi

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestWatchBeginsWithWhatIsThere(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	}
	client := NewClientset(pod("first"))
	w, err := client.CoreV1().Pods("ns").Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	if _, err := client.CoreV1().Pods("ns").Create(t.Context(), pod("second"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"first", "second"} {
		event := <-w.ResultChan()
		if got, ok := event.Object.(*corev1.Pod); !ok || got.Name != want {
			t.Errorf("event %+v, want of %s", event, want)
		}
	}
}
