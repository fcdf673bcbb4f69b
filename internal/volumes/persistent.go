package volumes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	mountutils "k8s.io/mount-utils"
	utilexec "k8s.io/utils/exec"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

// persistent makes a PersistentVolume ready for the pod.
func (v volume) persistent(ctx context.Context, rec *record) (Mounted, error) {
	pv := rec.PV
	if err := v.checkNode(pv); err != nil {
		return Mounted{}, err
	}
	if err := checkElement("PersistentVolume", pv.Name); err != nil {
		return Mounted{}, err
	}
	if err := v.claimAlone(rec); err != nil {
		return Mounted{}, err
	}
	switch src := pv.Spec.PersistentVolumeSource; {
	case src.CSI != nil:
		return v.csi(ctx, rec)
	case isBlock(pv) && src.Local == nil:
		return Mounted{}, fmt.Errorf("PersistentVolume of type %s with volumeMode Block is not supported by this node", pvKind(&src))
	case src.HostPath != nil:
		if len(pv.Spec.MountOptions) > 0 {
			return Mounted{}, at(opNew, errors.New("Mount options are not supported for this volume type")) //nolint:staticcheck // the kubelet's text
		}
		return v.hostPathVolume(rec, src.HostPath)
	case src.Local != nil:
		return v.local(rec, src.Local)
	case src.NFS != nil:
		if err := v.keep(rec); err != nil {
			return Mounted{}, err
		}
		return v.nfs(ctx, pv.Name, src.NFS, src.NFS.ReadOnly || rec.ReadOnly, pv.Spec.MountOptions)
	default:
		return Mounted{}, fmt.Errorf("PersistentVolume has spec.%s: volumes of that type are not supported by this node", pvKind(&src))
	}
}

// claimAlone refuses a volume that is for one pod only and that another pod of this node has, as a
// kubelet does; the scheduler may not have been asked. With several access modes nobody knows
// which one is meant.
func (v volume) claimAlone(rec *record) error {
	modes := rec.PV.Spec.AccessModes
	if len(modes) != 1 || modes[0] != corev1.ReadWriteOncePod {
		return nil
	}
	defer v.m.shared.Lock("one pod: " + rec.PV.Name)()
	used, err := v.m.usedByOthers(rec.PV.Name, string(v.pod.UID))
	switch {
	case err != nil:
		return err
	case !used:
		return v.keep(rec)
	}
	op := opSetUp
	if isBlock(rec.PV) {
		op = opMap
	}
	return at(op, errors.New("volume uses the ReadWriteOncePod access mode and is already in use by another pod"))
}

func (v volume) hostPathVolume(rec *record, src *corev1.HostPathVolumeSource) (Mounted, error) {
	mounted, err := v.hostPath(src)
	var located *Error
	if errors.As(err, &located) {
		return mounted, located.Err
	}
	if err != nil {
		return mounted, err
	}
	return mounted, v.keep(rec)
}

// local makes a directory, or a disk, of this node ready.
func (v volume) local(rec *record, src *corev1.LocalVolumeSource) (Mounted, error) {
	st, err := os.Stat(src.Path)
	if err != nil {
		return Mounted{}, at(opNew, fmt.Errorf("path %q does not exist", src.Path))
	}
	if err := v.keep(rec); err != nil {
		return Mounted{}, err
	}
	if isBlock(rec.PV) {
		mounted, err := deviceAt(src.Path)
		return mounted, at(opMap, err)
	}
	defer v.m.shared.Lock(rec.PV.Name)()
	mounted := Mounted{Path: src.Path}
	options := rec.PV.Spec.MountOptions
	if st.Mode()&os.ModeDevice != 0 {
		if mounted.Path, err = v.m.mountDisk(rec.PV, options); err != nil {
			return Mounted{}, at(opDevice, err)
		}
	} else if err := mounted.restrict(options); err != nil {
		return Mounted{}, err
	}
	if rec.ReadOnly {
		return mounted, nil
	}
	mounted.Relabel = !mounted.Readonly
	return mounted, v.shareLocal(rec.PV, mounted.Path)
}

// shareLocal gives the volume to the pod's fsGroup, unless another pod has it: that one's
// group stays, as with a kubelet.
func (v volume) shareLocal(pv *corev1.PersistentVolume, path string) error {
	used, err := v.m.usedByOthers(pv.Name, string(v.pod.UID))
	if err != nil || used {
		return err
	}
	return v.giveToGroup(path)
}

// restrict takes over the options that a bind mount can have.
func (m *Mounted) restrict(options []string) error {
	for _, option := range options {
		switch option {
		case "ro":
			m.Readonly = true
		case "noexec":
			m.NoExec = true
		case "nosuid":
			m.NoSuid = true
		case "nodev":
			m.NoDev = true
		case "rw", "exec", "suid", "dev", "defaults", "bind", "relatime":
		default:
			return fmt.Errorf("PersistentVolume has spec.mountOptions %q, which this node cannot set for a directory", option)
		}
	}
	return nil
}

// localMounts is where a kubelet mounts disks of local volumes.
func (m *Manager) localMounts(pv string) string {
	return filepath.Join(m.opts.Layout.Plugins(), "kubernetes.io", "local-volume", "mounts", pv)
}

// mountDisk mounts a local volume's disk, once for all its pods. An empty disk gets a file
// system first (spec.local.fsType, ext4 by default).
func (m *Manager) mountDisk(pv *corev1.PersistentVolume, options []string) (string, error) {
	dir := m.localMounts(pv.Name)
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || mounted {
		return dir, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	fsType := "ext4"
	if t := pv.Spec.Local.FSType; t != nil && *t != "" {
		fsType = *t
	}
	formatter := mountutils.NewSafeFormatAndMount(mountutils.New(""), utilexec.New())
	if err := formatter.FormatAndMount(pv.Spec.Local.Path, dir, fsType, options); err != nil {
		return "", fmt.Errorf("mount disk %s: %w", pv.Spec.Local.Path, err)
	}
	return dir, nil
}

// releaseLocal unmounts a disk that no other pod uses.
func (m *Manager) releaseLocal(uid string, pv *corev1.PersistentVolume) error {
	defer m.shared.Lock(pv.Name)()
	dir := m.localMounts(pv.Name)
	mounted, err := mounts.IsMountPoint(dir)
	if err != nil || !mounted {
		return err
	}
	if used, err := m.usedByOthers(pv.Name, uid); err != nil || used {
		return err
	}
	if err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return os.Remove(dir)
}

// deviceAt describes the block device at path.
func deviceAt(path string) (Mounted, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return Mounted{}, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return Mounted{}, fmt.Errorf("%s is not a block device", path)
	}
	return Mounted{Path: path, Device: &Device{
		Major: unix.Major(st.Rdev), Minor: unix.Minor(st.Rdev), Mode: st.Mode & 0o777, UID: st.Uid, GID: st.Gid,
	}}, nil
}
