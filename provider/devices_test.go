package provider

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clienttesting "k8s.io/client-go/testing"

	"github.com/vk-metal/vk-metal/internal/devices"
	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// fakeDevices lends to every pod whose name begins with gpu.
type fakeDevices struct {
	mu       sync.Mutex
	err      error
	released []string
}

func (f *fakeDevices) Wants(pod *corev1.Pod) bool { return strings.HasPrefix(pod.Name, "gpu") }

func (f *fakeDevices) Allocate(context.Context, *corev1.Pod) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeDevices) Prepare(context.Context, string, string) (devices.Lent, error) {
	return devices.Lent{
		Env: map[string]string{"GPU": "1"}, Mounts: []devices.Mount{{HostPath: "/dev", ContainerPath: "/gpu", ReadOnly: true}},
		Devices: []devices.Device{{HostPath: "/dev/null", ContainerPath: "/dev/gpu0", Permissions: "rw"}},
	}, nil
}

func (f *fakeDevices) Release(uid string) error {
	time.Sleep(time.Second) // of the bubble: who does not wait for it is found
	f.mu.Lock()
	defer f.mu.Unlock()
	f.released = append(f.released, uid)
	return nil
}

func (f *fakeDevices) hasReleased(uid string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.released, uid)
}

func (f *fakeDevices) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func TestPodsWithDevices(t *testing.T) {
	w := newWorld(t)
	lender := &fakeDevices{err: devices.ErrNotYet}
	w.facts = func(d *Deps) { d.Devices = lender }
	synctest.Test(t, func(t *testing.T) {
		w.t = t
		early := false
		w.client.PrependReactor("delete", "pods", func(action clienttesting.Action) (bool, kruntime.Object, error) {
			del := action.(clienttesting.DeleteActionImpl)
			if grace := del.DeleteOptions.GracePeriodSeconds; grace != nil && *grace == 0 && del.Name == "gpu" {
				early = early || !lender.hasReleased("uid-gpu")
			}
			return false, nil, nil
		})
		w.boot("")
		w.create("plain", nil)
		pod := w.create("gpu", func(p *corev1.Pod) { p.Spec.Containers[0].Name = "lent" })
		w.until("a pod without devices runs", w.podIs("plain", corev1.PodRunning))
		if len(w.launched("lent").Args) > 0 {
			t.Error("it runs without its devices")
		}
		lender.set(nil)
		w.until("the pod has its devices", w.podIs("gpu", corev1.PodRunning))
		spec := w.launched("lent")
		if !slices.ContainsFunc(spec.Env, func(e []byte) bool { return string(e) == "GPU=1" }) {
			t.Errorf("env %q", spec.Env)
		}
		if want := []launchspec.Device{{Path: "/dev/gpu0", Type: "c", Major: 1, Minor: 3, Mode: 0o666}}; !slices.Equal(spec.Devices, want) {
			t.Errorf("devices %+v, want %+v", spec.Devices, want)
		}
		if !slices.ContainsFunc(spec.Mounts, func(m launchspec.Mount) bool { return m.Target == "/gpu" && m.Readonly && m.Source == "/dev" }) {
			t.Errorf("mounts %+v", spec.Mounts)
		}
		lender.set(errors.New("requested number of devices unavailable"))
		refused := w.create("gpu2", nil)
		w.until("the other is refused", w.podIs("gpu2", corev1.PodFailed))
		if got, _ := w.get("gpu2"); got.Status.Reason != "UnexpectedAdmissionError" {
			t.Errorf("it failed with %s %s", got.Status.Reason, got.Status.Message)
		}
		w.delete("gpu", 1)
		w.until("devices are given back", func() bool { return lender.hasReleased(string(pod.UID)) && lender.hasReleased(string(refused.UID)) })
		w.until("object gone", func() bool { _, ok := w.get("gpu"); return !ok })
		if early {
			t.Error("the object was deleted before its devices were given back")
		}
	})
}
