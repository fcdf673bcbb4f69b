package volumes

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/csi"
)

// TestVolumesThatWereBuiltIn: what a pod or a PersistentVolume names by a type that was built into
// Kubernetes is its driver's, and is given back to it.
func TestVolumesThatWereBuiltIn(t *testing.T) {
	type want struct{ driver, handle string }
	for name, c := range map[string]struct {
		inline corev1.VolumeSource
		pv     corev1.PersistentVolumeSource
		want   want
	}{
		"awsElasticBlockStore": {
			corev1.VolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "aws://eu-1a/vol-1"}},
			corev1.PersistentVolumeSource{AWSElasticBlockStore: &corev1.AWSElasticBlockStoreVolumeSource{VolumeID: "vol-1"}},
			want{"ebs.csi.aws.com", "vol-1"},
		},
		"azureDisk": {
			corev1.VolumeSource{AzureDisk: &corev1.AzureDiskVolumeSource{DiskName: "d", DataDiskURI: "/sub/d"}},
			corev1.PersistentVolumeSource{AzureDisk: &corev1.AzureDiskVolumeSource{DiskName: "d", DataDiskURI: "/sub/d"}},
			want{"disk.csi.azure.com", "/sub/d"},
		},
		"azureFile": {
			corev1.VolumeSource{AzureFile: &corev1.AzureFileVolumeSource{SecretName: "s", ShareName: "share"}},
			corev1.PersistentVolumeSource{AzureFile: &corev1.AzureFilePersistentVolumeSource{SecretName: "s", ShareName: "share", SecretNamespace: ptr("shop")}},
			want{"file.csi.azure.com", "#s#share#"},
		},
		"cinder": {
			corev1.VolumeSource{Cinder: &corev1.CinderVolumeSource{VolumeID: "c-1"}},
			corev1.PersistentVolumeSource{Cinder: &corev1.CinderPersistentVolumeSource{VolumeID: "c-1"}},
			want{"cinder.csi.openstack.org", "c-1"},
		},
		"gcePersistentDisk": {
			corev1.VolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{PDName: "pd"}},
			corev1.PersistentVolumeSource{GCEPersistentDisk: &corev1.GCEPersistentDiskVolumeSource{PDName: "pd"}},
			want{"pd.csi.storage.gke.io", "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/pd"},
		},
		"portworxVolume": {
			corev1.VolumeSource{PortworxVolume: &corev1.PortworxVolumeSource{VolumeID: "px"}},
			corev1.PersistentVolumeSource{PortworxVolume: &corev1.PortworxVolumeSource{VolumeID: "px"}},
			want{"pxd.portworx.com", "px"},
		},
		"vsphereVolume": {
			corev1.VolumeSource{VsphereVolume: &corev1.VsphereVirtualDiskVolumeSource{VolumePath: "[store] dir/x.vmdk"}},
			corev1.PersistentVolumeSource{VsphereVolume: &corev1.VsphereVirtualDiskVolumeSource{VolumePath: "[store] dir/x.vmdk"}},
			want{"csi.vsphere.vmware.com", "[store] dir/x.vmdk"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			m, claims, driver := csiManager(t)
			var got []want
			driver.publish = func(_ context.Context, v csi.Volume) error {
				got = append(got, want{v.PV.Spec.CSI.Driver, v.PV.Spec.CSI.VolumeHandle})
				if strings.Contains(v.Name, "/") || v.Inline != nil {
					t.Errorf("volume %q, inline %v", v.Name, v.Inline)
				}
				return nil
			}
			claims.bind("data", c.pv)
			for _, volume := range []corev1.Volume{vol("v", c.inline), claimVolume("v", "data")} {
				got, driver.calls = nil, nil
				pod := testPod(volume)
				prepare(t, m, pod, PodInfo{})
				prepare(t, m, pod, PodInfo{}) // by the record
				if len(got) != 2 || got[0] != got[1] || got[0].driver != c.want.driver || !strings.HasPrefix(got[0].handle, c.want.handle) {
					t.Errorf("published %v, want %v", got, c.want)
				}
				if err := m.Remove(t.Context(), testUID); err != nil {
					t.Fatal(err)
				}
				if last := driver.calls[len(driver.calls)-1]; !strings.HasPrefix(last, "unpublish ") {
					t.Errorf("calls %q", driver.calls)
				}
			}
			driver.err = errors.New("driver name x not found in the list of registered CSI drivers")
			_, err := m.Prepare(t.Context(), testPod(vol("v", c.inline)), PodInfo{})
			var located *Error
			if !errors.As(err, &located) || located.Field != "spec.volumes[0]."+name {
				t.Errorf("without the driver: %v", err)
			}
			driver.err = nil
		})
	}
}

// TestNodeFullOfVolumes: the pod is told apart that can never have its volume here.
func TestNodeFullOfVolumes(t *testing.T) {
	m, claims, driver := csiManager(t)
	claims.bind("data", csiSource)
	pod := testPod(claimVolume("d", "data"))
	pod.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "d"}}
	for _, full := range []bool{false, true} {
		driver.err = &csi.NotAttachedError{Reason: "too many", Exhausted: full}
		_, err := m.Prepare(t.Context(), pod, PodInfo{})
		want := ""
		if full {
			want = "Node has reached its volume attachment limit, rejecting pod. unmounted volumes=[d], unattached volumes=[d], failed to process volumes=[]: too many"
		}
		if got := Rejection(pod, err); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		if late := Late(pod, err, context.DeadlineExceeded); !strings.HasPrefix(late, "Unable to attach or mount volumes: unmounted volumes=[d]") {
			t.Errorf("late: %q", late)
		}
		var reasons []string
		for reason := range Events(err) {
			reasons = append(reasons, reason)
		}
		if !slices.Equal(reasons, []string{"FailedAttachVolume"}) {
			t.Errorf("events %v", reasons)
		}
	}
	driver.err = nil
}
