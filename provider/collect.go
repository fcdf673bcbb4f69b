package provider

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/vk-metal/vk-metal/internal/staticpods"
	"github.com/vk-metal/vk-metal/provider/podplan"
	"github.com/vk-metal/vk-metal/systemd"
)

// collectEvery is how often this node is compared with the API as a whole.
const collectEvery = time.Minute

// collectRetry is how soon it is compared again where it could not be; it doubles.
const collectRetry = time.Second

// collect finds what belongs to no pod of the API and hands it to workers that end it.
func (p *Provider) collect(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	retry := collectRetry
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		err := p.collectOnce(ctx)
		if err == nil {
			err = p.sweepLogs()
		}
		if err == nil {
			retry = collectRetry
			timer.Reset(collectEvery)
			continue
		}
		if ctx.Err() == nil {
			p.log.Warn("Cannot compare this node with the API", "err", err)
		}
		timer.Reset(retry)
		retry = min(2*retry, collectEvery)
	}
}

func (p *Provider) collectOnce(ctx context.Context) error {
	known, err := p.pods.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	inAPI := map[types.UID]bool{}
	for _, pod := range known {
		inAPI[pod.UID] = true
		p.seen(pod) // a lost event is made up for
	}
	here, err := p.here(ctx)
	if err != nil {
		return err
	}
	orphans := map[types.UID]*corev1.Pod{}
	shared := false
	for uid, pod := range here {
		if inAPI[uid] {
			shared = true
			continue
		}
		if staticpods.IsUID(uid) {
			continue // the API has only their mirrors
		}
		orphans[uid] = pod
	}
	if len(orphans) == 0 {
		return p.sameCluster(ctx, shared)
	}
	if err := p.sameCluster(ctx, shared); err != nil {
		return fmt.Errorf("leave %d pods that the API does not have alone: %w", len(orphans), err)
	}
	var errs []error
	for _, pod := range orphans {
		errs = append(errs, p.endOrphan(ctx, pod))
	}
	return errors.Join(errs...)
}

// endOrphan ends a pod whose object the API server itself says not to have. One that it has
// after all is left alone: the watch will tell.
func (p *Provider) endOrphan(ctx context.Context, pod *corev1.Pod) error {
	if pod.Name != "" {
		gone, err := p.confirmGone(ctx, pod)
		if err != nil || !gone {
			return err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if w := p.workers[pod.UID]; w != nil {
		w.setGone(nil)
		return nil
	}
	p.log.Info("Ending a pod that the API does not have", "pod", pod.Namespace+"/"+pod.Name, "uid", pod.UID)
	p.startWorker(pod, true)
	return nil
}

// here is every pod of which something is on this node, with what is known of it.
func (p *Provider) here(ctx context.Context) (map[types.UID]*corev1.Pod, error) {
	found := map[types.UID]*corev1.Pod{}
	add := func(uid, namespace, name string) {
		if old := found[types.UID(uid)]; uid == "" || old != nil && old.Name != "" {
			return
		}
		pod, err := loadPod(p.deps.Layout, uid)
		if err != nil || string(pod.UID) != uid {
			pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid), Namespace: namespace, Name: name}}
		}
		found[types.UID(uid)] = pod
	}
	units, err := p.deps.Runtime.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list units: %w", err)
	}
	for _, u := range units {
		add(u.Identity.PodUID, u.Identity.PodNamespace, u.Identity.PodName)
	}
	networks, err := p.deps.Network.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list pod networks: %w", err)
	}
	for uid := range networks {
		add(uid, "", "")
	}
	volumes, err := p.deps.Volumes.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, uid := range volumes {
		add(uid, "", "")
	}
	if p.deps.Claims != nil {
		for uid, namespace := range p.deps.Claims.Pods() {
			add(uid, namespace, "")
		}
	}
	for _, dir := range []string{filepath.Dir(p.deps.Layout.PodRun("x")), filepath.Dir(p.deps.Layout.PodLib("x"))} {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list pods' directories: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() && podplan.IsUID(e.Name()) {
				add(e.Name(), "", "")
			}
		}
	}
	return found, nil
}

// cluster remembers which cluster this node's pods belong to: the UID of the Service
// default/kubernetes, which lives as long as the cluster's store does.
type cluster struct {
	ServiceUID types.UID `json:"serviceUID"`
}

// errForeign guards against an API server with another or an empty store: its silence
// about our pods must not end them.
var errForeign = errors.New("this API server is not the one that the pods came from")

// sameCluster is nil when the API server is the one that our pods came from. A pod that
// both have proves it.
func (p *Provider) sameCluster(ctx context.Context, shared bool) error {
	service, err := p.deps.Client.CoreV1().Services(metav1.NamespaceDefault).Get(ctx, "kubernetes", metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("identify the cluster: %w", err)
	}
	path := filepath.Join(p.deps.Layout.Lib, "cluster.json")
	var before cluster
	err = readJSON(path, &before)
	switch {
	case err == nil && before.ServiceUID == service.UID:
		return nil
	case err == nil && !shared:
		return fmt.Errorf("%w: remove %s if it is", errForeign, path)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("identify the cluster: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("remember the cluster: %w", err)
	}
	return writeJSON(path, cluster{ServiceUID: service.UID})
}

// qosSlice is a slice as it was set, and when.
type qosSlice struct {
	resources systemd.Resources
	at        time.Time
}

func (p *Provider) markQOS() {
	select {
	case p.qosDirty <- struct{}{}:
	default:
	}
}

// qosSlices keeps the slices above the pods' in step with them: burstable weighs what its
// pods ask for together, best-effort as little as can be.
func (p *Provider) qosSlices(ctx context.Context) error {
	p.markQOS()
	set := map[string]qosSlice{}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.qosDirty:
		}
		for _, slice := range p.wantedQOS() {
			before := set[slice.Name]
			if time.Since(before.at) < resync && equality.Semantic.DeepEqual(before.resources, slice.Resources) {
				continue
			}
			if err := p.deps.Runtime.EnsureSlice(ctx, slice); err != nil && ctx.Err() == nil {
				p.log.Warn("Cannot set up a slice", "unit", slice.Name, "err", err)
				continue
			}
			if slice.Name == podplan.SliceRoot && before.at.IsZero() {
				p.deps.Recorder.Event(&corev1.ObjectReference{Kind: "Node", Name: p.deps.NodeName, UID: types.UID(p.deps.NodeName)},
					corev1.EventTypeNormal, "NodeAllocatableEnforced", "Updated Node Allocatable limit across pods")
			}
			set[slice.Name] = qosSlice{slice.Resources, time.Now()}
		}
		select { // many pods at once are one change
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// podsResources are those of all pods together.
func (p *Provider) podsResources() systemd.Resources {
	r := systemd.Resources{CPUShares: p.podsShares()}
	if n := p.deps.Node.PodsMemory; n > 0 {
		r.MemoryMax = &n
	}
	if n := p.deps.Node.PodsTasks; n > 0 {
		r.TasksMax = &n
	}
	return r
}

// podsShares weighs all pods together by the processors that they may have, against
// the server's own services, as the kubelet does; nil while that is not known.
func (p *Provider) podsShares() *uint64 {
	if p.deps.Node.Allocatable == nil {
		return nil
	}
	allocatable := p.deps.Node.Allocatable()
	milli := allocatable.Cpu().MilliValue()
	if milli == 0 {
		return nil
	}
	shares := podplan.Shares(milli)
	return &shares
}

func (p *Provider) wantedQOS() []systemd.Slice {
	var milli int64
	for _, w := range p.all() {
		pod, _ := w.current()
		if podplan.QOS(pod) == corev1.PodQOSBurstable && !isFinal(pod.Status.Phase) {
			requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
			milli += requests.Cpu().MilliValue()
		}
	}
	burstable, least := podplan.Shares(milli), podplan.Shares(0)
	return []systemd.Slice{
		{Name: podplan.SliceRoot, Description: "Kubernetes pods", Resources: p.podsResources()},
		{Name: podplan.SliceBurstable, Description: "Kubernetes pods (burstable)", Resources: systemd.Resources{CPUShares: &burstable}},
		{Name: podplan.SliceBestEffort, Description: "Kubernetes pods (best effort)", Resources: systemd.Resources{CPUShares: &least}},
	}
}
