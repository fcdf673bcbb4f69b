package csi

import (
	"context"
	"sync"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
)

// tendEvery is how often volumes are published again whose driver asks for that, and claims
// are asked whether they have grown: a node may not watch claims.
const tendEvery = time.Minute

// Run tends to published volumes, and to what the cluster knows of the node's drivers, until ctx
// ends.
func (m *Manager) Run(ctx context.Context) error {
	var others sync.WaitGroup
	defer others.Wait()
	others.Go(func() { m.introduce(ctx) })
	others.Go(func() { m.keepAllocatable(ctx) })
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			m.tend(ctx)
		}
	}
}

func (m *Manager) tend(ctx context.Context) {
	m.mu.Lock()
	var volumes []Volume
	for _, pub := range m.published {
		if pub.Done && pub.volume != nil && (pub.Republish || pub.Expand) {
			volumes = append(volumes, *pub.volume)
		}
	}
	m.mu.Unlock()
	for _, v := range volumes {
		if err := m.tendTo(ctx, v); err != nil && ctx.Err() == nil {
			m.log.Warn("cannot tend to a CSI volume", "uid", v.Pod.UID, "volume", v.Name, "err", err)
		}
	}
}

// tendTo publishes again, with fresh tokens, where the driver asks for it, and expands.
func (m *Manager) tendTo(ctx context.Context, v Volume) error {
	s, err := v.source()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer m.handles.Lock(s.driver + "^" + s.handle)()
	pub := m.publication(place{string(v.Pod.UID), v.Name})
	if pub == nil {
		return nil // taken down meanwhile
	}
	if !pub.Republish {
		return m.expandIfGrown(ctx, v, s)
	}
	job, err := m.ask(ctx, v, s)
	if err != nil {
		return err
	}
	if job.spec.RequiresRepublish != nil && *job.spec.RequiresRepublish {
		if job.attaches() {
			if job.context, err = m.attached(ctx, s); err != nil {
				return err
			}
		}
		if err := job.publish(ctx); err != nil {
			return err
		}
	}
	return job.expand(ctx)
}

func (m *Manager) expandIfGrown(ctx context.Context, v Volume, s source) error {
	d, err := m.driver(s.driver)
	if err != nil {
		return err
	}
	caps, err := d.capabilities(ctx)
	if err != nil {
		return err
	}
	job := &publishing{m: m, v: v, s: s, driver: d, caps: caps}
	return job.expand(ctx)
}

// Stats are a driver's figures of one volume; nil where it has none.
type Stats struct {
	Capacity, Used, Available      int64 // bytes
	Inodes, InodesUsed, InodesFree int64
	Abnormal                       *bool
}

// Stats asks the driver for figures of a published volume.
func (m *Manager) Stats(ctx context.Context, v Volume) (*Stats, error) {
	s, err := v.source()
	if err != nil {
		return nil, err
	}
	d, err := m.driver(s.driver)
	if err != nil {
		return nil, err
	}
	caps, err := d.capabilities(ctx)
	if err != nil || !caps[canStats] {
		return nil, err
	}
	request := &csispec.NodeGetVolumeStatsRequest{VolumeId: s.handle, VolumePath: m.publishPath(string(v.Pod.UID), v.Name, s)}
	answer, err := d.client.NodeGetVolumeStats(ctx, request)
	if err != nil {
		return nil, err
	}
	stats := &Stats{}
	for _, usage := range answer.GetUsage() {
		switch usage.GetUnit() {
		case csispec.VolumeUsage_BYTES:
			stats.Capacity, stats.Used, stats.Available = usage.GetTotal(), usage.GetUsed(), usage.GetAvailable()
		case csispec.VolumeUsage_INODES:
			stats.Inodes, stats.InodesUsed, stats.InodesFree = usage.GetTotal(), usage.GetUsed(), usage.GetAvailable()
		}
	}
	if condition := answer.GetVolumeCondition(); condition != nil {
		stats.Abnormal = &condition.Abnormal
	}
	return stats, nil
}
