package provider

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/stuck"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// SELinux is the host's; *selinux.Host implements it.
type SELinux interface {
	// Defaults are the policy's labels of containers, empty where it names none.
	Defaults() (process, file string)
	// Check says whether the policy knows a label.
	Check(label string) error
	// Level is the pod's own level, kept until Release, which is idempotent.
	Level(podUID string) (string, error)
	Release(podUID string) error
	// Relabel labels a file, or all that is in a directory; idempotent. What cannot have labels stays
	// as it is.
	Relabel(path, label string, recursive bool) error
}

// podSELinux is what the pod's labels are made of, nil on a host without SELinux.
func (w *worker) podSELinux() (*podplan.PodSELinux, error) {
	host := w.p.deps.SELinux
	if host == nil {
		return nil, nil
	}
	level, err := host.Level(string(w.uid))
	if err != nil {
		return nil, err
	}
	process, file := host.Defaults()
	return &podplan.PodSELinux{Process: process, File: file, Level: level}, nil
}

// checkLabels refuses labels that the policy does not know. Privileged containers run with systemd's
// where it has none for them, and the pod asks for none: unlabelled says so.
func (w *worker) checkLabels(pod *corev1.Pod, c podplan.Container, host *podplan.PodSELinux) (unlabelled bool, err error) {
	labels, err := podplan.LabelsOf(pod, c, host)
	if err != nil || labels.Process == "" {
		return false, err
	}
	check := w.p.deps.SELinux.Check
	err = check(labels.Process)
	if err != nil && labels.Privileged && labels.Field == "" {
		w.p.privilegedUnlabelled.Do(func() {
			w.log.Warn("Privileged containers run without an SELinux label of their own", "err", err)
		})
		unlabelled, err = true, nil
	}
	if err == nil {
		err = check(labels.File)
	}
	if err != nil {
		return false, w.refusedLabel(pod, c, host, labels, err)
	}
	return unlabelled, nil
}

// refusedLabel names the option that the policy refuses, or all of them if each alone is well.
func (w *worker) refusedLabel(pod *corev1.Pod, c podplan.Container, host *podplan.PodSELinux, labels podplan.Labels, err error) error {
	field := labels.Field
	for _, trial := range podplan.LabelTrials(pod, c, host) {
		if w.p.deps.SELinux.Check(trial.Process) != nil {
			field = trial.Field
			break
		}
	}
	message := err.Error()
	if field != "" {
		message = field + ": " + message
	}
	return &podplan.ConfigError{Reason: podplan.CreateContainerError, Message: message}
}

// relabelPatience bounds how long a start waits for the walk through a volume, which goes on
// meanwhile: the next try finds it further. A pod's end waits for it.
const relabelPatience = 30 * time.Second

// relabel labels what the container uses of the host. A volume that this agent has given the label
// before is the containers' own since.
func (w *worker) relabel(ctx context.Context, list []podplan.Relabel) error {
	for _, r := range list {
		if r.Recursive && w.labelled[r.Path] == r.Label {
			continue
		}
		if err := w.relabelOne(ctx, r); err != nil {
			return err
		}
		if r.Recursive {
			if w.labelled == nil {
				w.labelled = map[string]string{}
			}
			w.labelled[r.Path] = r.Label
		}
	}
	return nil
}

func (w *worker) relabelOne(ctx context.Context, r podplan.Relabel) error {
	label := func() error { return w.p.deps.SELinux.Relabel(r.Path, r.Label, r.Recursive) }
	if !r.Recursive {
		return label()
	}
	ctx, cancel := context.WithTimeout(ctx, relabelPatience)
	defer cancel()
	_, err := stuck.Do(ctx, &w.p.calls, string(w.uid)+" relabel "+r.Path, func() (struct{}, error) { return struct{}{}, label() }, func(struct{}) {})
	if err != nil {
		return fmt.Errorf("relabel volume: %w", err)
	}
	return nil
}
