package provider

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/provider/podstatus"
)

// adopt makes the pod's directory of run-time state if there is none. After a reboot its
// attempts are taken from the API's status; the directory appears complete or not at all.
func adopt(layout paths.Layout, pod *corev1.Pod, now time.Time) error {
	dir := layout.PodRun(string(pod.UID))
	if _, err := os.Lstat(filepath.Join(dir, podFile)); err == nil {
		return nil
	}
	// Made by somebody else's crash half way: nothing was started from it.
	fresh := layout
	fresh.Run = filepath.Join(layout.Run, "adopt")
	staging := fresh.PodRun(string(pod.UID))
	if err := os.RemoveAll(staging); err != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	if err := os.MkdirAll(staging, 0o700); err != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	if err := importAttempts(fresh, layout, pod, now); err != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	if err := savePod(fresh, pod); err != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	return mergeInto(staging, dir)
}

// mergeInto renames staging to dir. dir may be there already without a pod.json, when
// another part made a namespace below it first; then pod.json goes in last.
func mergeInto(staging, dir string) error {
	err := os.Rename(staging, dir)
	if err == nil {
		return nil
	}
	if _, statErr := os.Lstat(dir); statErr != nil {
		return fmt.Errorf("adopt pod: %w", err)
	}
	if err := os.Rename(filepath.Join(staging, "containers"), filepath.Join(dir, "containers")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("adopt pod: %w", err)
	}
	return os.Rename(filepath.Join(staging, podFile), filepath.Join(dir, podFile))
}

// importAttempts writes an ended attempt for each container that had begun to run.
func importAttempts(to, layout paths.Layout, pod *corev1.Pod, now time.Time) error {
	for _, c := range podplan.Containers(pod) {
		status, known := statusOf(pod, c.Name)
		number := lastLog(layout, pod, c.Name)
		if ours := known && strings.HasPrefix(status.ContainerID, podstatus.ContainerIDPrefix); ours {
			number = max(number, int(status.RestartCount))
		}
		if number < 0 {
			continue
		}
		if err := importAttempt(to, pod, c, status, number, now); err != nil {
			return err
		}
	}
	return nil
}

func importAttempt(to paths.Layout, pod *corev1.Pod, c podplan.Container, status corev1.ContainerStatus, number int, now time.Time) error {
	end := status.State.Terminated
	if status.State.Waiting != nil {
		end = status.LastTerminationState.Terminated
	}
	if end == nil || number > int(status.RestartCount) {
		end = lostEnd(status, now)
	}
	rec := attemptRecord{
		Container: c.Name, Number: number, Unit: podplan.UnitName(string(pod.UID), c.Name, number), SpecHash: podplan.SpecHash(c),
		Image: status.Image, ImageID: status.ImageID, CreatedAt: end.StartedAt.Time, Launched: true, StartedAt: end.StartedAt.Time,
		Imported: true, Completed: true, Reason: end.Reason, Message: end.Message,
	}
	if err := rec.save(to, string(pod.UID)); err != nil {
		return err
	}
	return saveExit(to, string(pod.UID), rec, launchspec.Exit{
		ExitCode: int(end.ExitCode), Signal: int(end.Signal),
		StartedAt:  end.StartedAt.UTC().Format(time.RFC3339Nano),
		FinishedAt: end.FinishedAt.UTC().Format(time.RFC3339Nano),
	})
}

// lostEnd is the end of an attempt that a reboot or a power cut took away (as containerd
// reports it: 255, Unknown).
func lostEnd(status corev1.ContainerStatus, now time.Time) *corev1.ContainerStateTerminated {
	end := &corev1.ContainerStateTerminated{
		ExitCode: 255, Reason: "Unknown", Message: "The node was restarted while the container ran",
		StartedAt: metav1.NewTime(now), FinishedAt: metav1.NewTime(now),
	}
	if status.State.Running != nil {
		end.StartedAt = status.State.Running.StartedAt
	}
	return end
}

func statusOf(pod *corev1.Pod, container string) (corev1.ContainerStatus, bool) {
	for _, list := range [][]corev1.ContainerStatus{
		pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses, pod.Status.EphemeralContainerStatuses,
	} {
		for _, cs := range list {
			if cs.Name == container {
				return cs, true
			}
		}
	}
	return corev1.ContainerStatus{}, false
}
