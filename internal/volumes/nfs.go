package volumes

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/mounts"
)

const dirNFS = "kubernetes.io~nfs"

// inlineNFS mounts an export that the pod itself names.
func (v volume) inlineNFS(ctx context.Context, src *corev1.NFSVolumeSource) (Mounted, error) {
	err := v.keep(&record{Volume: v.spec.Name, Source: &corev1.VolumeSource{NFS: src}})
	if err != nil {
		return Mounted{}, v.fail("nfs", err)
	}
	mounted, err := v.nfs(ctx, v.spec.Name, src, src.ReadOnly, nil)
	if err != nil {
		return Mounted{}, v.fail("nfs", err)
	}
	return mounted, nil
}

// nfs mounts an export, NFS 4.2 unless the options say otherwise: nothing but the kernel's
// client is needed. Versions below 4 need what mount.nfs does, and are refused.
func (v volume) nfs(ctx context.Context, name string, src *corev1.NFSVolumeSource, readonly bool, options []string) (Mounted, error) {
	dir := v.m.nfsPath(string(v.pod.UID), name)
	defer v.m.shared.Lock(dir)() // the pod may name one claim twice
	mounted, err := mounts.Listed(dir)
	if err != nil || mounted {
		return Mounted{Path: dir, Readonly: readonly}, err
	}
	opts, err := parseNFSOptions(options)
	if err != nil {
		return Mounted{}, err
	}
	server, err := opts.find(ctx, src.Server)
	if err != nil {
		return Mounted{}, err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return Mounted{}, err
	}
	if err := v.m.attachNFS(ctx, opts.export(src, server, readonly), dir); err != nil {
		return Mounted{}, fmt.Errorf("mount NFS export %s:%s: %w", src.Server, src.Path, err)
	}
	return Mounted{Path: dir, Readonly: readonly}, nil
}

// nfsExport is what the kernel is told.
type nfsExport struct {
	source string
	// options are key=value, or flags, of the file system; attrs are MOUNT_ATTR_* of the mount.
	options []string
	attrs   int
}

// nfsOptions are mount options taken apart.
type nfsOptions struct {
	attrs   int
	version string
	// port is the server's; without is set where it is not asked beforehand, because it is not
	// reached by TCP.
	port    string
	without bool
	rest    []string
}

// mountAttrs are the options of any mount.
var mountAttrs = map[string]int{
	"ro": unix.MOUNT_ATTR_RDONLY, "nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "noexec": unix.MOUNT_ATTR_NOEXEC,
	"noatime": unix.MOUNT_ATTR_NOATIME, "nodiratime": unix.MOUNT_ATTR_NODIRATIME,
}

// mountWords are options that say what is so anyway, or that mount(8) keeps for itself.
var mountWords = []string{"rw", "defaults", "exec", "suid", "dev", "async", "relatime", "_netdev", "nofail", "auto", "noauto"}

func parseNFSOptions(options []string) (nfsOptions, error) {
	out := nfsOptions{port: "2049"}
	for _, list := range options {
		for option := range strings.SplitSeq(list, ",") {
			if err := out.add(option); err != nil {
				return nfsOptions{}, err
			}
		}
	}
	out.version = cmp.Or(out.version, "4.2")
	if !strings.HasPrefix(out.version, "4") {
		return nfsOptions{}, fmt.Errorf("NFS version %q is not supported by this node, 4 and later are", out.version)
	}
	return out, nil
}

func (o *nfsOptions) add(option string) error {
	key, value, _ := strings.Cut(option, "=")
	if attr, known := mountAttrs[option]; known {
		o.attrs |= attr
	}
	switch {
	case option == "" || mountAttrs[option] != 0 && option != "ro" || slices.Contains(mountWords, option):
		return nil
	case key == "vers" || key == "nfsvers":
		o.version = value
		return nil
	case key == "addr" || key == "clientaddr" || key == "source":
		return fmt.Errorf("mount option %q is not for volumes", option)
	case key == "port" && value != "0":
		o.port = value
	case option == "rdma" || option == "proto=rdma":
		o.without = true
	}
	o.rest = append(o.rest, option)
	return nil
}

// export is what the kernel is told of an export at the server.
func (o *nfsOptions) export(src *corev1.NFSVolumeSource, server netip.Addr, readonly bool) nfsExport {
	host := src.Server
	if server.Is6() {
		host = "[" + server.String() + "]"
	}
	out := nfsExport{
		source: host + ":" + src.Path, attrs: o.attrs,
		options: append([]string{"vers=" + o.version, "addr=" + server.String()}, o.rest...),
	}
	if readonly && o.attrs&unix.MOUNT_ATTR_RDONLY == 0 {
		out.attrs |= unix.MOUNT_ATTR_RDONLY
		out.options = append(out.options, "ro")
	}
	return out
}

func (m *Manager) nfsPath(uid, name string) string {
	return m.opts.Layout.KubeletVolume(uid, dirNFS, name)
}
