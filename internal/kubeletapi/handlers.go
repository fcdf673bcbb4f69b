package kubeletapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilexec "k8s.io/utils/exec"
)

// healthy is a kubelet's check of its loop: whether all parts of the agent answer.
func (s *Server) healthy(*http.Request) error {
	if s.o.Health == nil {
		return nil
	}
	return s.o.Health()
}

func (s *Server) pods(w http.ResponseWriter, _ *http.Request) { writePods(w, s.o.Pods.Pods()) }

// runningPods lists the pods with a container that runs, with no more than a runtime knows.
func (s *Server) runningPods(w http.ResponseWriter, _ *http.Request) {
	var running []*corev1.Pod
	for _, pod := range s.o.Pods.Pods() {
		slim := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace, UID: pod.UID}}
		for _, status := range statuses(pod) {
			if status.State.Running != nil {
				slim.Spec.Containers = append(slim.Spec.Containers, corev1.Container{Name: status.Name, Image: status.Image})
			}
		}
		if len(slim.Spec.Containers) > 0 {
			running = append(running, slim)
		}
	}
	writePods(w, running)
}

func writePods(w http.ResponseWriter, pods []*corev1.Pod) {
	list := corev1.PodList{TypeMeta: metav1.TypeMeta{Kind: "PodList", APIVersion: "v1"}, Items: []corev1.Pod{}}
	for _, pod := range pods {
		list.Items = append(list.Items, *pod)
	}
	writeJSON(w, &list)
}

func (s *Server) configz(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, map[string]any{"kubeletconfig": s.o.Config})
}

func writeJSON(w http.ResponseWriter, value any) {
	data, err := json.Marshal(value)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(data)
}

// find answers 404 itself, with the text missing, when the request's pod or its UID does not exist.
func (s *Server) find(w http.ResponseWriter, r *http.Request, missing string) (ref Ref, pod *corev1.Pod, ok bool) {
	ref = Ref{Namespace: r.PathValue("namespace"), Pod: r.PathValue("pod"), Container: r.PathValue("container")}
	pod, ok = s.o.Pods.Pod(ref.Namespace, ref.Pod)
	if !ok {
		http.Error(w, missing, http.StatusNotFound)
		return ref, nil, false
	}
	if uid := types.UID(r.PathValue("uid")); uid != "" && uid != pod.UID {
		http.Error(w, "pod not found", http.StatusNotFound)
		return ref, nil, false
	}
	ref.UID = pod.UID
	return ref, pod, true
}

// noPod is a kubelet's answer to all calls but containerLogs.
const noPod = "pod does not exist"

func hasContainer(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Name == name {
			return true
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

func statuses(pod *corev1.Pod) []corev1.ContainerStatus {
	var all []corev1.ContainerStatus
	all = append(all, pod.Status.InitContainerStatuses...)
	all = append(all, pod.Status.ContainerStatuses...)
	return append(all, pod.Status.EphemeralContainerStatuses...)
}

// checkpoint refuses as a kubelet whose runtime cannot: a container's checkpoint is more than systemd
// has.
func (s *Server) checkpoint(w http.ResponseWriter, r *http.Request) {
	ref, pod, ok := s.find(w, r, noPod)
	if !ok {
		return
	}
	if !hasContainer(pod, ref.Container) {
		http.Error(w, fmt.Sprintf("container %s does not exist", ref.Container), http.StatusNotFound)
		return
	}
	http.Error(w, fmt.Sprintf("checkpointing of %s/%s/%s failed (vk-metal cannot make checkpoints of containers)", ref.Namespace, ref.Pod, ref.Container),
		http.StatusInternalServerError)
}

// maxRunOutput bounds what /run collects.
const maxRunOutput = 16 << 20

// run is exec without streams: the old /run call. Its cmd parameter is split at spaces.
func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	ref, pod, ok := s.find(w, r, noPod)
	if !ok || !runs(w, pod, ref.Container) {
		return
	}
	var out limitedBuffer
	err := s.o.Streams.Exec(r.Context(), ref, strings.Split(r.URL.Query().Get("cmd"), " "), nil, &out, &out, false, nil)
	var exit utilexec.ExitError
	if err != nil && !errors.As(err, &exit) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if err != nil {
		http.Error(w, fmt.Sprintf("command terminated with exit code %d: %s", exit.ExitStatus(), out.buf.Bytes()), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(out.buf.Bytes())
}

// limitedBuffer keeps the first maxRunOutput bytes and drops the rest.
type limitedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *limitedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if room := maxRunOutput - b.buf.Len(); room > 0 {
		b.buf.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

// Close implements io.Closer.
func (b *limitedBuffer) Close() error { return nil }
