package testapi

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestWatchOfOne: others are not told of.
func TestWatchOfOne(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	}
	client := NewClientset(pod("other"))
	pods := client.CoreV1().Pods("ns")
	w, err := pods.Watch(t.Context(), metav1.ListOptions{FieldSelector: "metadata.name=one"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, name := range []string{"third", "one"} {
		if _, err := pods.Create(t.Context(), pod(name), metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if event := <-w.ResultChan(); event.Object.(*corev1.Pod).Name != "one" {
		t.Errorf("event %+v", event)
	}
}

// TestWatchBeginsWithWhatHasGone: what was deleted after a list is told, nothing older, and
// nothing that is there again.
func TestWatchBeginsWithWhatHasGone(t *testing.T) {
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	}
	client := NewClientset(pod("old"), pod("gone"), pod("again"))
	pods := client.CoreV1().Pods("ns")
	remove := func(name string) {
		if err := pods.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	remove("old")
	if _, err := pods.List(t.Context(), metav1.ListOptions{}); err != nil {
		t.Fatal(err)
	}
	remove("gone")
	remove("again")
	if _, err := pods.Create(t.Context(), pod("again"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w, err := pods.Watch(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, want := range []string{"DELETED gone", "ADDED again"} {
		event := <-w.ResultChan()
		if got, ok := event.Object.(*corev1.Pod); !ok || string(event.Type)+" "+got.Name != want {
			t.Errorf("event %+v, want %s", event, want)
		}
	}
}

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
