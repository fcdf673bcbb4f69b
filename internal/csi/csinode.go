package csi

import (
	"context"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
	"k8s.io/csi-translation-lib/plugins"
)

// migratedPlugins are the volume types that were built into Kubernetes and that drivers have taken
// over. The cluster attaches such volumes by their drivers only if the node says that it knows.
var migratedPlugins = strings.Join([]string{
	plugins.AWSEBSInTreePluginName, plugins.AzureDiskInTreePluginName, plugins.AzureFileInTreePluginName,
	plugins.CinderInTreePluginName, plugins.GCEPDInTreePluginName, plugins.PortworxVolumePluginName, plugins.VSphereInTreePluginName,
}, ",")

// allocatable is how many volumes of a driver the node takes; nil is as many as there are.
func allocatable(info *csispec.NodeGetInfoResponse) *storagev1.VolumeNodeResources {
	most := info.GetMaxVolumesPerNode()
	if most <= 0 {
		return nil
	}
	return &storagev1.VolumeNodeResources{Count: new(int32(min(most, math.MaxInt32)))}
}

// changeCSINode changes the drivers in the node's CSINode, which is made if it is missing.
func (m *Manager) changeCSINode(ctx context.Context, node *corev1.Node, change func([]storagev1.CSINodeDriver) []storagev1.CSINodeDriver) error {
	api := m.o.Client.StorageV1().CSINodes()
	return retry.RetryOnConflict(retry.DefaultRetry, func() error {
		have, err := api.Get(ctx, m.o.NodeName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			want := describe(&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: node.Name}}, node)
			want.Spec.Drivers = change([]storagev1.CSINodeDriver{}) // not null: the field is required
			_, err = api.Create(ctx, want, metav1.CreateOptions{})
			if apierrors.IsAlreadyExists(err) {
				return apierrors.NewConflict(storagev1.Resource("csinodes"), m.o.NodeName, err)
			}
			return err
		}
		if err != nil {
			return err
		}
		want := describe(have.DeepCopy(), node)
		want.Spec.Drivers = change(want.Spec.Drivers)
		if reflect.DeepEqual(have, want) {
			return nil
		}
		_, err = api.Update(ctx, want, metav1.UpdateOptions{})
		return err
	})
}

// describe lets the CSINode go with its Node, not with one that had the name before, and says
// which volume types are the drivers'.
func describe(info *storagev1.CSINode, node *corev1.Node) *storagev1.CSINode {
	owned := slices.ContainsFunc(info.OwnerReferences, func(o metav1.OwnerReference) bool { return o.Kind == "Node" && o.UID == node.UID })
	if !owned {
		info.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: node.Name, UID: node.UID}}
	}
	if info.Annotations[corev1.MigratedPluginsAnnotationKey] != migratedPlugins {
		metav1.SetMetaDataAnnotation(&info.ObjectMeta, corev1.MigratedPluginsAnnotationKey, migratedPlugins)
	}
	return info
}

// introduceRetry is how a CSINode is tried for that cannot be made: the Node may not be there yet.
var introduceRetry = wait.Backoff{Duration: time.Second, Factor: 2, Jitter: 0.1, Steps: math.MaxInt32, Cap: time.Minute}

// introduce makes the CSINode of a node that may never have a driver.
func (m *Manager) introduce(ctx context.Context) {
	told := false
	_ = wait.ExponentialBackoffWithContext(ctx, introduceRetry, func(ctx context.Context) (bool, error) { // fails with ctx only
		err := m.introduceOnce(ctx)
		if err != nil && !told && ctx.Err() == nil {
			m.log.WarnContext(ctx, "Cannot make the CSINode, trying again", "err", err)
			told = true
		}
		return err == nil, nil
	})
}

func (m *Manager) introduceOnce(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, withdrawTimeout)
	defer cancel()
	m.node.Lock()
	defer m.node.Unlock()
	node, err := m.o.Client.CoreV1().Nodes().Get(ctx, m.o.NodeName, metav1.GetOptions{})
	if err != nil {
		return err
	}
	return m.changeCSINode(ctx, node, func(list []storagev1.CSINodeDriver) []storagev1.CSINodeDriver { return list })
}
