package provider

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/probes"
)

// TestTerminationMessages: the end of the file, or of the log where that is asked for.
func TestTerminationMessages(t *testing.T) {
	for name, tc := range map[string]struct {
		policy corev1.TerminationMessagePolicy
		file   string
		code   int
		want   string
	}{
		"file":                      {corev1.TerminationMessageReadFile, "why", 1, "why"},
		"no file":                   {corev1.TerminationMessageReadFile, "", 1, ""},
		"end of a long file":        {corev1.TerminationMessageReadFile, strings.Repeat("x", 5000) + "why", 0, strings.Repeat("x", 4093) + "why"},
		"log":                       {corev1.TerminationMessageFallbackToLogsOnError, "", 1, "the end of the log"},
		"no log without an error":   {corev1.TerminationMessageFallbackToLogsOnError, "", 0, ""},
		"no log where there a file": {corev1.TerminationMessageFallbackToLogsOnError, "why", 1, "why"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				a := w.boot("")
				w.create("a", func(p *corev1.Pod) {
					p.Spec.RestartPolicy = corev1.RestartPolicyNever
					p.Spec.Containers[0].TerminationMessagePolicy = tc.policy
				})
				w.until("Running", w.podIs("a", corev1.PodRunning))
				file := filepath.Join(w.layout.PodLib("uid-a"), "containers", "app", "0.termination-log")
				if err := os.WriteFile(file, []byte(tc.file), 0o600); err != nil {
					t.Fatal(err)
				}
				w.exit(a, "app", tc.code)
				w.until("it has ended", func() bool { pod, _ := w.get("a"); return pod.Status.ContainerStatuses[0].State.Terminated != nil })
				if pod, _ := w.get("a"); pod.Status.ContainerStatuses[0].State.Terminated.Message != tc.want {
					t.Errorf("message %.20q…, want %.20q…", pod.Status.ContainerStatuses[0].State.Terminated.Message, tc.want)
				}
			})
		})
	}
}

// TestKillLiftsTheCPUQuota: before KILL, not before the signal that asks; and what a pod that
// goes on may use is put back.
func TestKillLiftsTheCPUQuota(t *testing.T) {
	for name, tc := range map[string]struct {
		limit string
		end   func(w *world, a *agent)
		want  []string
	}{
		"pod ends": {"500m", func(w *world, _ *agent) { w.delete("a", 5) }, []string{
			"app/0 SIGTERM", "vkm quota -1ns", "kubepods quota -1ns", "app/0 SIGKILL",
		}},
		"pod goes on": {"500m", failLiveness, []string{
			"app/0 SIGTERM", "vkm quota -1ns", "kubepods quota -1ns", "app/0 SIGKILL", "kubepods quota 500ms",
		}},
		"no quota": {"0", failLiveness, []string{"app/0 SIGTERM", "app/0 SIGKILL"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			synctest.Test(t, func(t *testing.T) {
				w.t = t
				w.deaf["app"] = true
				a := w.boot("")
				w.create("a", func(p *corev1.Pod) {
					p.Spec.TerminationGracePeriodSeconds = ptr.To(int64(5))
					p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(tc.limit)}
				})
				w.until("Running", w.podIs("a", corev1.PodRunning))
				tc.end(w, a)
				w.until("killed", func() bool { return slices.Contains(w.sent(), "app/0 SIGKILL") })
				synctest.Wait()
				if got := w.sent(); !slices.Equal(got, tc.want) {
					t.Errorf("%q, want %q", got, tc.want)
				}
			})
		})
	}
}

// failLiveness has the container's liveness probe fail.
func failLiveness(w *world, a *agent) {
	w.mu.Lock()
	w.results["app/0"] = probes.Results{Started: true, LivenessFailed: true}
	w.mu.Unlock()
	a.onProbe("uid-a")
}
