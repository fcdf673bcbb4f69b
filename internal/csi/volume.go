package csi

import (
	"crypto/sha256"
	"fmt"
	"path/filepath"

	csispec "github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
)

// Volume is one CSI volume of one pod: PV's, or Inline.
type Volume struct {
	Pod *corev1.Pod
	// Name is the PersistentVolume's, or the pod's own for an inline volume.
	Name     string
	Claim    string // of a PersistentVolume; its namespace is the pod's
	PV       *corev1.PersistentVolume
	Inline   *corev1.CSIVolumeSource
	ReadOnly bool
	FSGroup  *int64
	// MountLabel is the SELinux label that the volume may be mounted with, empty for none.
	MountLabel string
}

// Published says where a volume is.
type Published struct {
	Path string
	// Group says that the caller is to give the volume to the pod's fsGroup.
	Group bool
	// Labelled says that the volume is mounted with MountLabel.
	Labelled bool
}

const pluginDir = "kubernetes.io~csi"

// source is what Volume says in either form.
type source struct {
	driver, handle string
	fsType         string
	attributes     map[string]string
	stage, publish *corev1.SecretReference
	readOnly       bool
	block          bool
	mode           storagev1.VolumeLifecycleMode
	access         corev1.PersistentVolumeAccessMode
	mountOptions   []string
}

func (v Volume) source() (source, error) {
	var s source
	switch {
	case v.Inline != nil:
		s = v.inline()
	case v.PV != nil && v.PV.Spec.CSI != nil:
		s = persistent(v.PV)
	default:
		return source{}, fmt.Errorf("volume %s is not of type csi", v.Name)
	}
	s.readOnly = s.readOnly || v.ReadOnly
	if s.handle == "" {
		return source{}, errNoHandle
	}
	if err := checkElement("driver", s.driver); err != nil {
		return source{}, err
	}
	return s, checkElement("volume", v.Name)
}

func (v Volume) inline() source {
	s := source{
		driver: v.Inline.Driver, attributes: v.Inline.VolumeAttributes, mode: storagev1.VolumeLifecycleEphemeral,
		handle: fmt.Sprintf("csi-%x", sha256.Sum256([]byte(string(v.Pod.UID)+v.Name))), access: corev1.ReadWriteOnce,
		readOnly: v.Inline.ReadOnly != nil && *v.Inline.ReadOnly,
	}
	if v.Inline.FSType != nil {
		s.fsType = *v.Inline.FSType
	}
	if ref := v.Inline.NodePublishSecretRef; ref != nil {
		s.publish = &corev1.SecretReference{Namespace: v.Pod.Namespace, Name: ref.Name}
	}
	return s
}

func persistent(pv *corev1.PersistentVolume) source {
	c := pv.Spec.CSI
	s := source{
		driver: c.Driver, handle: c.VolumeHandle, fsType: c.FSType, attributes: c.VolumeAttributes,
		stage: c.NodeStageSecretRef, publish: c.NodePublishSecretRef, readOnly: c.ReadOnly,
		mode: storagev1.VolumeLifecyclePersistent, access: corev1.ReadWriteOnce, mountOptions: pv.Spec.MountOptions,
		block: pv.Spec.VolumeMode != nil && *pv.Spec.VolumeMode == corev1.PersistentVolumeBlock,
	}
	if len(pv.Spec.AccessModes) > 0 {
		s.access = pv.Spec.AccessModes[0]
	}
	return s
}

// capability describes the volume to the driver; group is nil unless the driver applies it.
func (s source) capability(caps capabilities, group *int64) *csispec.VolumeCapability {
	c := &csispec.VolumeCapability{AccessMode: &csispec.VolumeCapability_AccessMode{Mode: accessMode(s.access, caps[canMultiWriter])}}
	if s.block {
		c.AccessType = &csispec.VolumeCapability_Block{Block: &csispec.VolumeCapability_BlockVolume{}}
		return c
	}
	mount := &csispec.VolumeCapability_MountVolume{FsType: s.fsType, MountFlags: s.mountOptions}
	if group != nil && caps[canMountGroup] {
		mount.VolumeMountGroup = fmt.Sprint(*group)
	}
	c.AccessType = &csispec.VolumeCapability_Mount{Mount: mount}
	return c
}

// accessMode is the kubelet's mapping (pkg/volume/csi/csi_client.go).
func accessMode(mode corev1.PersistentVolumeAccessMode, multiWriter bool) csispec.VolumeCapability_AccessMode_Mode {
	switch mode {
	case corev1.ReadWriteOnce:
		if multiWriter {
			return csispec.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER
		}
		return csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	case corev1.ReadWriteOncePod:
		if multiWriter {
			return csispec.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
		}
		return csispec.VolumeCapability_AccessMode_SINGLE_NODE_WRITER
	case corev1.ReadOnlyMany:
		return csispec.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY
	case corev1.ReadWriteMany:
		return csispec.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
	}
	return csispec.VolumeCapability_AccessMode_UNKNOWN
}

func (m *Manager) dir(elements ...string) string {
	return filepath.Join(append([]string{m.o.Layout.Plugins(), "kubernetes.io", "csi"}, elements...)...)
}

// stagingPath is where the driver stages the volume for all pods of the node.
func (m *Manager) stagingPath(name string, s source) string {
	if s.block {
		return m.dir("volumeDevices", "staging", name)
	}
	return m.dir(s.driver, fmt.Sprintf("%x", sha256.Sum256([]byte(s.handle))), "globalmount")
}

// publishPath is where the pod's own view of the volume is.
func (m *Manager) publishPath(uid, name string, s source) string {
	if s.block {
		return m.dir("volumeDevices", "publish", name, uid)
	}
	return filepath.Join(m.o.Layout.KubeletVolume(uid, pluginDir, name), "mount")
}

// attachmentName is the VolumeAttachment's, by the attach-detach controller's rule.
func attachmentName(s source, node string) string {
	return fmt.Sprintf("csi-%x", sha256.Sum256([]byte(s.handle+s.driver+node)))
}

// uniqueName is the volume in a Node's status.
func uniqueName(driver, handle string) corev1.UniqueVolumeName {
	return corev1.UniqueVolumeName("kubernetes.io/csi/" + driver + "^" + handle)
}
