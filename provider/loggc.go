package provider

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/provider/podstatus"
)

// logLink is where log collectors look for the log of an attempt: a link of the kubelet's
// name, <pod>_<namespace>_<container>-<64 hexadecimal digits>.log, beside the pods' logs.
func (p *Provider) logLink(pod *corev1.Pod, container string, attempt int) string {
	const longest = 255 // bytes in a file's name
	id := sha256.Sum256([]byte(podstatus.ContainerID(string(pod.UID), container, attempt)))
	name := pod.Name + "_" + pod.Namespace + "_" + container + "-" + hex.EncodeToString(id[:])
	return filepath.Join(p.logLinks(), name[:min(len(name), longest-len(".log"))]+".log")
}

// logLinks is /var/log/containers.
func (p *Provider) logLinks() string {
	return filepath.Join(filepath.Dir(p.deps.Layout.Log), "containers")
}

// linkLog makes the attempt's link; one that is there is replaced.
func (p *Provider) linkLog(pod *corev1.Pod, container string, attempt int) error {
	link := p.logLink(pod, container, attempt)
	if err := os.MkdirAll(filepath.Dir(link), 0o755); err != nil {
		return fmt.Errorf("link log: %w", err)
	}
	target := p.deps.Layout.ContainerLog(pod.Namespace, pod.Name, string(pod.UID), container, attempt)
	err := os.Symlink(target, link)
	if errors.Is(err, fs.ErrExist) {
		if err := os.Remove(link); err != nil {
			return fmt.Errorf("link log: %w", err)
		}
		err = os.Symlink(target, link)
	}
	if err != nil {
		return fmt.Errorf("link log: %w", err)
	}
	return nil
}

// sweepLogs removes logs of pods that are no more, and links to logs that are no more. It is
// to be called once the API server has proved to be ours, with all pods' workers there.
func (p *Provider) sweepLogs() error {
	return errors.Join(p.sweepPodLogs(), p.sweepLogLinks())
}

func (p *Provider) sweepPodLogs() error {
	entries, err := os.ReadDir(p.deps.Layout.Log)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list logs of pods: %w", err)
	}
	var errs []error
	for _, e := range entries {
		uid := e.Name()[strings.LastIndexByte(e.Name(), '_')+1:]
		if !e.IsDir() || strings.Count(e.Name(), "_") != 2 || !podplan.IsUID(uid) || p.known(uid) {
			continue
		}
		p.log.Info("Removing the logs of a pod that is no more", "uid", uid)
		errs = append(errs, os.RemoveAll(filepath.Join(p.deps.Layout.Log, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove logs of pods: %w", err)
	}
	return nil
}

// known says whether anything is known of the pod: a worker, or state on disk.
func (p *Provider) known(uid string) bool {
	if p.byUID(types.UID(uid)) != nil {
		return true
	}
	for _, dir := range []string{p.deps.Layout.PodRun(uid), p.deps.Layout.PodLib(uid)} {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// sweepLogLinks removes links to logs of pods that have none any more; others' are left
// alone. The file itself does not count: it is away for a moment when it is rotated.
func (p *Provider) sweepLogLinks() error {
	dir := p.logLinks()
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("list links to logs: %w", err)
	}
	var errs []error
	for _, e := range entries {
		link := filepath.Join(dir, e.Name())
		target, err := os.Readlink(link)
		if err != nil || !strings.HasPrefix(target, p.deps.Layout.Log+"/") {
			continue
		}
		if _, err := os.Stat(filepath.Dir(filepath.Dir(target))); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := os.Remove(link); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove links to logs: %w", err)
	}
	return nil
}
