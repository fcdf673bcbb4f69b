package volumes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/vk-metal/vk-metal/internal/diskuse"
	"github.com/vk-metal/vk-metal/internal/keylock"
	"github.com/vk-metal/vk-metal/internal/objects"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/stuck"
)

// Options configures a Manager. Layout and Objects are required.
type Options struct {
	Layout  paths.Layout
	Objects objects.Source
	// TrustBundles reads ClusterTrustBundles, Certificates asks for those of pods; nil refuses them.
	TrustBundles objects.TrustBundles
	Certificates objects.PodCertificates
	// Claims reads claims and what they are bound to; nil refuses them.
	Claims Claims
	// CSI publishes volumes of drivers; nil refuses them.
	CSI CSI
	// Node is our own Node, nil while it is not known: volumes may be tied to its labels.
	Node func() *corev1.Node
	// NodeAllocatable bounds memory-backed emptyDirs and is the default of resourceFieldRef limits.
	NodeAllocatable func() corev1.ResourceList
	// Disk is shared with others who measure what pods take of the disk; nil shares with nobody.
	Disk *diskuse.Meter
	// Labels is nil on a host without SELinux.
	Labels Labels
	Logger *slog.Logger
}

// Manager is the node's volume store. Calls for different pods may run at once; calls for one
// pod must not.
type Manager struct {
	opts Options
	log  *slog.Logger
	// shared guards what several pods may use at once, by name.
	shared keylock.Mutex
	calls  stuck.Calls
	usages usages
}

var _ Store = (*Manager)(nil)

// NewManager makes the directories and sees to it that secrets lie on a tmpfs.
func NewManager(opts Options) (*Manager, error) {
	if opts.Objects == nil {
		return nil, errors.New("open volumes: no source of objects given")
	}
	if opts.Node == nil {
		opts.Node = func() *corev1.Node { return nil }
	}
	if opts.NodeAllocatable == nil {
		opts.NodeAllocatable = func() corev1.ResourceList { return nil }
	}
	if opts.Disk == nil {
		opts.Disk = &diskuse.Meter{}
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	m := &Manager{opts: opts, log: opts.Logger}
	if err := os.MkdirAll(filepath.Join(opts.Layout.Lib, "pods"), 0o750); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	if err := m.ensureMemory(); err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	return m, nil
}

// memoryRoot is the node's one tmpfs for what must not touch a disk.
func (m *Manager) memoryRoot() string { return filepath.Join(m.opts.Layout.Run, "volumes") }

// ensureMemory mounts a tmpfs at memoryRoot unless it lies on one, as it does below /run.
func (m *Manager) ensureMemory() error {
	root := m.memoryRoot()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	ok, err := onMemory(root)
	if err != nil || ok {
		return err
	}
	return mountTmpfs(root, "mode=0700")
}

func onMemory(path string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return false, fmt.Errorf("read file system of %s: %w", path, err)
	}
	return st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC, nil
}

// The plugin directory names are the kubelet's, which tools look for.
const (
	dirEmpty     = "kubernetes.io~empty-dir"
	dirConfigMap = "kubernetes.io~configmap"
	dirSecret    = "kubernetes.io~secret" //nolint:gosec // a directory name
	dirProjected = "kubernetes.io~projected"
	dirDownward  = "kubernetes.io~downward-api"
	// dirCertificates is ours: what must not be lost of requests for certificates.
	dirCertificates = "vk-metal~pod-certificates"
)

func (m *Manager) diskDir(uid string) string { return diskDir(m.opts.Layout, uid) }

func diskDir(layout paths.Layout, uid string) string {
	return filepath.Join(layout.PodLib(uid), "volumes")
}

// EmptyDir is where an emptyDir on disk is.
func EmptyDir(layout paths.Layout, podUID, volume string) string {
	return filepath.Join(diskDir(layout, podUID), dirEmpty, volume)
}

func (m *Manager) memoryDir(uid string) string { return filepath.Join(m.memoryRoot(), uid) }

// checkElement refuses what must not become one element of a path.
func checkElement(what, s string) error {
	if s == "" || s == "." || s == ".." || len(s) > 255 || strings.ContainsAny(s, "/\x00") {
		return fmt.Errorf("%s %q cannot name a directory", what, s)
	}
	return nil
}

// volume is one volume of one pod on its way.
type volume struct {
	m     *Manager
	pod   *corev1.Pod
	info  PodInfo
	index int
	spec  *corev1.Volume
}

func (m *Manager) volumes(pod *corev1.Pod, info PodInfo) []volume {
	out := make([]volume, len(pod.Spec.Volumes))
	for i := range out {
		out[i] = volume{m: m, pod: pod, info: info, index: i, spec: &pod.Spec.Volumes[i]}
	}
	return out
}

// used are the volumes that containers use; a kubelet does nothing about others.
func (m *Manager) used(pod *corev1.Pod, info PodInfo) []volume {
	return slices.DeleteFunc(m.volumes(pod, info), func(v volume) bool { return !isUsed(pod, v.spec.Name) })
}

// fail makes the *Error; field is the path below spec.volumes[i], empty for the volume itself.
func (v volume) fail(field string, err error) *Error {
	full := fmt.Sprintf("spec.volumes[%d]", v.index)
	if field != "" {
		full += "." + field
	}
	return &Error{Volume: v.spec.Name, Field: full, Err: err, NotFound: apierrors.IsNotFound(err)}
}

// Prepare implements Store.
func (m *Manager) Prepare(ctx context.Context, pod *corev1.Pod, info PodInfo) (map[string]Mounted, error) {
	if err := checkElement("pod UID", string(pod.UID)); err != nil {
		return nil, err
	}
	list := m.used(pod, info)
	mounted := make([]Mounted, len(list))
	err := sideBySide(len(list), func(i int) (err error) {
		mounted[i], err = list[i].prepare(ctx)
		return err
	})
	if err != nil {
		return nil, err
	}
	out := make(map[string]Mounted, len(list))
	for i, v := range list {
		if v.spec.Image == nil {
			out[v.spec.Name] = mounted[i]
		}
	}
	return out, nil
}

func (v volume) prepare(ctx context.Context) (Mounted, error) {
	if err := checkElement("volume", v.spec.Name); err != nil {
		return Mounted{}, v.fail("name", err)
	}
	switch src := v.spec.VolumeSource; {
	case src.EmptyDir != nil:
		return v.emptyDir(src.EmptyDir)
	case src.HostPath != nil:
		return v.hostPath(src.HostPath)
	case src.PersistentVolumeClaim != nil, src.Ephemeral != nil:
		return v.claim(ctx)
	case src.NFS != nil:
		return v.inlineNFS(ctx, src.NFS)
	case src.CSI != nil:
		return v.inlineCSI(ctx, src.CSI)
	case src.Image != nil:
		return Mounted{}, nil // the containers' affair: it is pulled as their images are
	}
	if c, ok := v.content(); ok {
		return v.prepareContent(ctx, c)
	}
	if translator.IsInlineMigratable(v.spec) {
		return v.inlineMigrated(ctx)
	}
	field := v.kind()
	return Mounted{}, v.fail(field, fmt.Errorf("volumes of type %s are not supported by this node", field))
}

// Update implements Store.
func (m *Manager) Update(ctx context.Context, pod *corev1.Pod, info PodInfo) error {
	if err := checkElement("pod UID", string(pod.UID)); err != nil {
		return err
	}
	var errs []error
	for _, v := range m.used(pod, info) {
		c, ok := v.content()
		if !ok || checkElement("volume", v.spec.Name) != nil {
			continue
		}
		if err := v.render(ctx, c); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Remove implements Store.
func (m *Manager) Remove(ctx context.Context, podUID string) error {
	if err := checkElement("pod UID", podUID); err != nil {
		return err
	}
	m.usages.forget(podUID)
	if err := m.removePersistent(ctx, podUID); err != nil {
		return fmt.Errorf("remove volumes of pod %s: %w", podUID, err)
	}
	if err := m.unmountMemory(podUID); err != nil {
		return fmt.Errorf("remove volumes of pod %s: %w", podUID, err)
	}
	err := errors.Join(removeTree(m.memoryDir(podUID)), removeTree(m.diskDir(podUID)))
	if err != nil {
		return fmt.Errorf("remove volumes of pod %s: %w", podUID, err)
	}
	return nil
}

// List implements Store.
func (m *Manager) List(context.Context) ([]string, error) {
	uids := map[string]struct{}{}
	entries, err := os.ReadDir(m.memoryRoot())
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, e := range entries {
		uids[e.Name()] = struct{}{}
	}
	pods, err := os.ReadDir(filepath.Join(m.opts.Layout.Lib, "pods"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	for _, e := range pods {
		if _, err := os.Lstat(m.diskDir(e.Name())); err == nil {
			uids[e.Name()] = struct{}{}
		}
	}
	return slices.Sorted(maps.Keys(uids)), nil
}
