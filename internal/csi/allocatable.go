package csi

import (
	"context"
	"fmt"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"
)

// refreshPeriod is how often a driver is asked how many volumes the node takes, 0 for never
// (KEP-4876, spec.nodeAllocatableUpdatePeriodSeconds).
func refreshPeriod(spec storagev1.CSIDriverSpec) time.Duration {
	if spec.NodeAllocatableUpdatePeriodSeconds == nil {
		return 0
	}
	return time.Duration(*spec.NodeAllocatableUpdatePeriodSeconds) * time.Second
}

// refresh tells the cluster anew how many volumes of the driver the node takes.
func (m *Manager) refresh(ctx context.Context, name string) error {
	d, err := m.driver(name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	info, err := d.client.NodeGetInfo(ctx, &csispec.NodeGetInfoRequest{})
	if err != nil {
		return fmt.Errorf("ask CSI driver %s about the node: %w", name, err)
	}
	m.node.Lock()
	defer m.node.Unlock()
	node, err := m.o.Client.CoreV1().Nodes().Get(ctx, m.o.NodeName, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("update volumes of CSI driver %s in CSINode: %w", name, err)
	}
	err = m.changeCSINode(ctx, node, func(list []storagev1.CSINodeDriver) []storagev1.CSINodeDriver {
		for i := range list {
			if list[i].Name == name {
				list[i].Allocatable = allocatable(info)
			}
		}
		return list
	})
	if err != nil {
		return fmt.Errorf("update volumes of CSI driver %s in CSINode: %w", name, err)
	}
	return nil
}

// refreshes remembers when which driver is to be asked.
type refreshes map[string]refreshAt

type refreshAt struct {
	period time.Duration
	due    time.Time
}

// next returns who is to be asked now, and when there is something to do again; wait is negative
// if nobody wants to be asked. A driver is asked a period after it came, or after its period changed.
func (r refreshes) next(now time.Time, periods map[string]time.Duration) (due []string, wait time.Duration) {
	for name, at := range r {
		if periods[name] != at.period {
			delete(r, name)
		}
	}
	wait = -1
	for name, period := range periods {
		if period <= 0 {
			continue
		}
		at, known := r[name]
		if known && !now.Before(at.due) {
			due = append(due, name)
		}
		if !known || !now.Before(at.due) {
			at = refreshAt{period, now.Add(period)}
			r[name] = at
		}
		if left := at.due.Sub(now); wait < 0 || left < wait {
			wait = left
		}
	}
	return due, wait
}

// keepAllocatable asks drivers how many volumes the node takes, as often as their objects say, until
// ctx ends.
func (m *Manager) keepAllocatable(ctx context.Context) {
	factory := informers.NewSharedInformerFactory(m.o.Client, 0)
	objects := factory.Storage().V1().CSIDrivers()
	changed := func(any) { m.replan() }
	_, err := objects.Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, UpdateFunc: func(_, now any) { changed(now) }, DeleteFunc: changed,
	})
	if err != nil {
		m.log.ErrorContext(ctx, "CSI drivers' objects cannot be watched", "err", err)
		return
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	plan := refreshes{}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-m.plan:
		case <-timer.C:
		}
		periods := map[string]time.Duration{}
		for _, name := range m.Drivers() {
			if object, err := objects.Lister().Get(name); err == nil {
				periods[name] = refreshPeriod(object.Spec)
			}
		}
		due, wait := plan.next(time.Now(), periods)
		for _, name := range due {
			if err := m.refresh(ctx, name); err != nil && ctx.Err() == nil {
				m.log.WarnContext(ctx, "How many volumes the node takes is not up to date", "driver", name, "err", err)
			}
		}
		timer.Stop()
		if wait >= 0 {
			timer.Reset(wait)
		}
	}
}

// replan has keepAllocatable look at who is to be asked when.
func (m *Manager) replan() {
	select {
	case m.plan <- struct{}{}:
	default: // it is going to
	}
}

// exhausted says whether the cluster could not attach a volume because the node has too many.
func exhausted(e *storagev1.VolumeError) bool {
	return e != nil && e.ErrorCode != nil && *e.ErrorCode == int32(codes.ResourceExhausted)
}
