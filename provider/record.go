package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// attemptRecord is attempt.json: what this agent decided about an attempt. With the unit and the
// exit record it is all that is known of it, and all that a new agent needs.
type attemptRecord struct {
	Container string `json:"container"`
	Number    int    `json:"number"`
	Unit      string `json:"unit"`
	SpecHash  string `json:"specHash"`
	Image     string `json:"image,omitempty"`
	ImageID   string `json:"imageID,omitempty"`

	CreatedAt time.Time     `json:"createdAt"`
	Backoff   time.Duration `json:"backoff,omitempty"`
	// Launched says that the unit was handed to systemd and its process began at StartedAt.
	Launched  bool      `json:"launched,omitempty"`
	StartedAt time.Time `json:"startedAt,omitzero"`

	// User is who the process was started as.
	User *corev1.LinuxContainerUser `json:"user,omitempty"`
	// Sandbox is the number of the pause process that it was started under.
	Sandbox int `json:"sandbox,omitempty"`
	// Round is the restart of all containers that it is part of.
	Round int `json:"round,omitempty"`
	// VolumeImages are the digests of the images that it has as volumes.
	VolumeImages []string `json:"volumeImages,omitempty"`
	// Resources are what the process runs with.
	Resources *corev1.ResourceRequirements `json:"resources,omitempty"`

	StopSignal string            `json:"stopSignal,omitempty"`
	PostStart  podplan.HookState `json:"postStart,omitempty"`
	Kill       *killRecord       `json:"kill,omitempty"`
	// Completed says that the log of the ended attempt is on disk and Message final: from
	// then on its end may have been reported.
	Completed bool `json:"completed,omitempty"`
	// Imported attempts were read from the API after a reboot; End is how they ended.
	Imported bool `json:"imported,omitempty"`
	// Reason of an imported or lost attempt's end; Message of any completed one.
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}

// killRecord says how far the end of an attempt has come; a new agent goes on from there.
type killRecord struct {
	Begun   time.Time `json:"begun"`
	Until   time.Time `json:"until"` // KILL comes then
	Message string    `json:"message"`
	// Abrupt says that the preStop hook is not run.
	Abrupt bool `json:"abrupt,omitempty"`
	// Restart says that the container is to be started again, whatever its exit code is.
	Restart bool `json:"restart,omitempty"`
}

// notLater moves a kill that is to begin in the future to now: the clock was set back since.
func (k *killRecord) notLater(now time.Time) {
	if late := k.Begun.Sub(now); late > 0 {
		k.Begun, k.Until = now, k.Until.Add(-late)
	}
}

const (
	recordFile = "attempt.json"
	podFile    = "pod.json"
	// preStopFile says that the preStop hook of an attempt is over.
	preStopFile = "prestop"
	// stopFile says that an attempt has its stop signal.
	stopFile = "stopsignal"
)

// save writes the record so that a crash leaves the old or the new one.
func (r attemptRecord) save(layout paths.Layout, uid string) error {
	dir := layout.AttemptRun(uid, r.Container, r.Number)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("save record of container %s: %w", r.Container, err)
	}
	return writeJSON(filepath.Join(dir, recordFile), r)
}

func writeJSON(path string, value any) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", path, err)
	}
	return writeFile(path, data, 0o600)
}

// writeFile replaces a file atomically. It does not sync: what it writes lies in /run, or
// is made anew after a crash.
func writeFile(path string, data []byte, mode os.FileMode) error {
	tmp := path + ".new"
	if err := os.WriteFile(tmp, data, mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Chmod(tmp, mode); err != nil { // beyond the umask
		return fmt.Errorf("write %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func readJSON(path string, value any) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, value); err != nil {
		return fmt.Errorf("decode %s: %w", path, err)
	}
	return nil
}

// loadRecords reads all attempts of a pod, by container, in ascending order. A directory
// without a record was being made when the agent died; nothing was started from it.
func loadRecords(layout paths.Layout, uid string) (map[string][]attemptRecord, error) {
	out := map[string][]attemptRecord{}
	root := filepath.Join(layout.PodRun(uid), "containers")
	containers, err := os.ReadDir(root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list attempts: %w", err)
	}
	for _, c := range containers {
		numbers, err := os.ReadDir(filepath.Join(root, c.Name()))
		if err != nil {
			return nil, fmt.Errorf("list attempts: %w", err)
		}
		for _, n := range numbers {
			var r attemptRecord
			err := readJSON(filepath.Join(root, c.Name(), n.Name(), recordFile), &r)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return nil, fmt.Errorf("read attempt: %w", err)
			}
			out[c.Name()] = append(out[c.Name()], r)
		}
		slices.SortFunc(out[c.Name()], func(a, b attemptRecord) int { return a.Number - b.Number })
	}
	return out, nil
}

// loadExit reads how an attempt ended; ok is false while there is no record.
func loadExit(layout paths.Layout, uid string, r attemptRecord) (exit launchspec.Exit, ok bool, err error) {
	err = readJSON(layout.ExitRecord(uid, r.Container, r.Number), &exit)
	if errors.Is(err, fs.ErrNotExist) {
		return exit, false, nil
	}
	if err != nil {
		return exit, false, fmt.Errorf("read exit record of container %s: %w", r.Container, err)
	}
	return exit, true, nil
}

// saveExit writes an exit record where no process could.
func saveExit(layout paths.Layout, uid string, r attemptRecord, exit launchspec.Exit) error {
	exit.PodUID, exit.Container, exit.Attempt = uid, r.Container, r.Number
	return writeJSON(layout.ExitRecord(uid, r.Container, r.Number), exit)
}

// savePod keeps the pod as it was last seen, so that it can be ended after its object is gone.
func savePod(layout paths.Layout, pod *corev1.Pod) error {
	slim := pod.DeepCopy()
	slim.ManagedFields = nil
	return writeJSON(filepath.Join(layout.PodRun(string(pod.UID)), podFile), slim)
}

func loadPod(layout paths.Layout, uid string) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := readJSON(filepath.Join(layout.PodRun(uid), podFile), pod); err != nil {
		return nil, err
	}
	return pod, nil
}

// lastLog is the highest attempt with a log file on disk, -1 for none: logs survive a reboot.
func lastLog(layout paths.Layout, pod *corev1.Pod, container string) int {
	dir := layout.ContainerLogs(pod.Namespace, pod.Name, string(pod.UID), container)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return -1
	}
	last := -1
	for _, e := range entries {
		name, ok := cutLog(e.Name())
		if n, err := strconv.Atoi(name); ok && err == nil {
			last = max(last, n)
		}
	}
	return last
}

func cutLog(name string) (string, bool) {
	const suffix = ".log"
	if len(name) <= len(suffix) || name[len(name)-len(suffix):] != suffix {
		return "", false
	}
	return name[:len(name)-len(suffix)], true
}
