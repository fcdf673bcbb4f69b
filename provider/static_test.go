package provider

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/staticpods"
)

// readManifests is the world's directory of static pods.
func (w *world) readManifests(ctx context.Context, changed func(staticpods.Set)) error {
	w.mu.Lock()
	w.changedManifests = changed
	set := staticpods.Set{Pods: w.manifests, Complete: true}
	w.mu.Unlock()
	changed(set)
	<-ctx.Done()
	return nil
}

// manifest puts other manifests into the directory.
func (w *world) manifest(pods ...*corev1.Pod) {
	w.mu.Lock()
	w.manifests = pods
	changed := w.changedManifests
	w.mu.Unlock()
	if changed != nil {
		changed(staticpods.Set{Pods: pods, Complete: true})
	}
}

// staticPod is a pod as staticpods reads it; version makes its UID.
func staticPod(version string) *corev1.Pod {
	uid := strings.Repeat(version, 32)
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "s-n1", UID: types.UID(uid),
			Annotations: map[string]string{staticpods.AnnotationSource: "file", staticpods.AnnotationHash: uid},
		},
		Spec: corev1.PodSpec{
			NodeName: "n1", RestartPolicy: corev1.RestartPolicyAlways, Containers: []corev1.Container{{Name: "app", Image: "img"}},
		},
	}
}

func (w *world) mirrors(version string) func() bool {
	return func() bool {
		pod, ok := w.get("s-n1")
		return ok && pod.Annotations[staticpods.AnnotationMirror] == strings.Repeat(version, 32) && pod.Status.Phase == corev1.PodRunning &&
			pod.OwnerReferences[0].UID == "node-1"
	}
}

func TestStaticPodLivesByItsManifest(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		synctest.Wait()
		w.manifest(staticPod("a"))
		w.until("mirror shows it running", w.mirrors("a"))

		w.delete("s-n1", 30)
		w.until("mirror is marked or made anew", w.mirrors("a"))
		time.Sleep(time.Minute)
		w.until("mirror stays", func() bool { pod, ok := w.get("s-n1"); return ok && pod.DeletionTimestamp == nil })
		if len(w.starts) != 1 {
			t.Fatalf("the mirror's deletion touched the pod: %v", w.starts)
		}

		w.deaf["app"] = true // the old one takes its whole grace period
		changed := staticPod("b")
		w.manifest(changed)
		w.until("replaced", w.mirrors("b"))
		if len(w.starts) != 2 || len(w.doubled) > 0 {
			t.Errorf("starts %v, beside one another %v", w.starts, w.doubled)
		}
		w.deaf["app"] = false
		w.manifest()
		w.until("nothing left", func() bool { _, ok := w.get("s-n1"); return !ok && len(w.left()) == 0 })
	})
}

func TestStaticPodNeedsNoAPIServer(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.client.PrependReactor("*", "*", func(clienttesting.Action) (bool, kruntime.Object, error) {
			return true, nil, errors.New("no API server")
		})
		w.manifests = []*corev1.Pod{staticPod("a")}
		first := w.boot("")
		w.until("runs", func() bool { return w.runs("app") })
		w.exit(first, "app", 1)
		w.until("restarted", func() bool { return w.runs("app") })
		first.stop()
		w.boot("")
		time.Sleep(time.Minute)
		synctest.Wait()
		if want := []string{"app/0", "app/1"}; !slices.Equal(w.starts, want) {
			t.Errorf("starts %v, want %v: an agent's restart touches no pod", w.starts, want)
		}
		w.manifest()
		w.until("nothing left", func() bool { return len(w.left()) == 0 })
	})
}

func TestManifestThatWentWhileNobodyLooked(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.manifests = []*corev1.Pod{staticPod("a")}
		first := w.boot("")
		w.until("mirror shows it running", w.mirrors("a"))
		first.stop()
		w.manifests = nil
		w.boot("")
		w.until("nothing left", func() bool { _, ok := w.get("s-n1"); return !ok && len(w.left()) == 0 })
	})
}

// TestMirrorOfNothingGoes: a mirror pod that belongs to no static pod is run by nobody.
func TestMirrorOfNothingGoes(t *testing.T) {
	w := newWorld(t)
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		w.boot("")
		w.create("fake", func(p *corev1.Pod) { p.Annotations = map[string]string{staticpods.AnnotationMirror: "x"} })
		w.until("deleted", func() bool { _, ok := w.get("fake"); return !ok })
		if len(w.starts) != 0 {
			t.Errorf("started %v", w.starts)
		}
	})
}
