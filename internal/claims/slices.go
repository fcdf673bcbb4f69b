package claims

import (
	"context"
	"fmt"
	"time"

	resourceapi "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/util/sets"
)

// Run deletes the ResourceSlices of drivers that have been away for a while, until ctx ends: the
// scheduler would go on to send pods for devices that nobody can make ready.
func (m *Manager) Run(ctx context.Context, ready func()) error {
	ready()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(m.o.SweepAfter): // for who does not come back after a restart
		}
		if err := m.sweepSlices(ctx); err != nil {
			m.log.Warn("cannot delete the ResourceSlices of drivers that are gone", "err", err)
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.sweep:
		}
	}
}

func (m *Manager) sweepSlices(ctx context.Context) error {
	client := m.o.Client.ResourceV1().ResourceSlices()
	ours := fields.Set{resourceapi.ResourceSliceSelectorNodeName: m.o.NodeName}
	list, err := client.List(ctx, metav1.ListOptions{FieldSelector: ours.String()})
	if err != nil {
		return fmt.Errorf("list ResourceSlices: %w", err)
	}
	gone := sets.New[string]()
	for _, s := range list.Items {
		if _, err := m.driver(s.Spec.Driver); err != nil {
			gone.Insert(s.Spec.Driver)
		}
	}
	for driver := range gone {
		selector := fields.Set{resourceapi.ResourceSliceSelectorNodeName: m.o.NodeName, resourceapi.ResourceSliceSelectorDriver: driver}
		if err := client.DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{FieldSelector: selector.String()}); err != nil {
			return fmt.Errorf("delete ResourceSlices of driver %s: %w", driver, err)
		}
		m.log.Info("deleted the ResourceSlices of a driver that is gone", "driver", driver)
	}
	return nil
}
