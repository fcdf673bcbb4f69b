package netns

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
	"github.com/fsnotify/fsnotify"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-metal/vk-metal/internal/keylock"
	"github.com/vk-metal/vk-metal/internal/linuxns"
	"github.com/vk-metal/vk-metal/internal/paths"
)

const (
	// cniTimeout is how long plugins have for one pod, as with a kubelet.
	cniTimeout = 2 * time.Minute
	// statusEvery is how often plugins are asked whether they work, and statusRetry while
	// they do not: nothing tells of it.
	statusEvery, statusRetry = 30 * time.Second, 5 * time.Second
)

// CNIOptions of a CNI.
type CNIOptions struct {
	Layout paths.Layout
	// ConfDir has the network lists: the first by name that can be read is used. Plugins
	// are programs in one of BinDirs.
	ConfDir string
	BinDirs []string
	// HostNetNS is the path of the network namespace that plugins take for the host's; empty
	// is the process's own.
	HostNetNS string
	// Changed is called when Ready may say something else.
	Changed func()
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// CNI implements Network by other people's plugins (the Container Network Interface 1.1 and
// before). Its state are the pods' namespaces and libcni's cache, a file for each attachment
// with the configuration that made it. It is safe for concurrent use.
type CNI struct {
	layout  paths.Layout
	confDir string
	host    *linuxns.NS
	lib     *libcni.CNIConfig
	locks   keylock.Mutex
	changed func()
	log     *slog.Logger
	// changedNetworks counts what CHECK found.
	changedNetworks prometheus.Counter

	mu     sync.Mutex
	list   *libcni.NetworkConfigList // the last that could be read, nil before
	notYet error                     // why Ready is not nil
	clean  bool                      // what is left of pods that are gone was released
	valid  string                    // the list whose plugins are known to be there
}

var _ Network = (*CNI)(nil)

// NewCNI opens the host's namespace. Close it after Run has returned.
func NewCNI(o CNIOptions) (*CNI, error) {
	host, err := linuxns.Open(o.HostNetNS)
	if err != nil {
		return nil, err
	}
	c := &CNI{
		layout: o.Layout, confDir: o.ConfDir, host: host, changed: o.Changed, log: o.Log,
		lib:    libcni.NewCNIConfigWithCacheDir(o.BinDirs, o.Layout.CNI(), &pluginExec{host: host, RawExec: &invoke.RawExec{Stderr: os.Stderr}}),
		notYet: errors.New("the network lists have not been read yet"),
		changedNetworks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "vk_metal_cni_check_failures_total", Help: "How often network plugins found the network of a running pod changed.",
		}),
	}
	if c.log == nil {
		c.log = slog.Default()
	}
	if c.changed == nil {
		c.changed = func() {}
	}
	return c, nil
}

// pluginExec runs plugins in the host's network namespace.
type pluginExec struct {
	host *linuxns.NS
	*invoke.RawExec
	version.PluginDecoder
}

// ExecPlugin implements invoke.Exec.
func (e *pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) (out []byte, err error) {
	err = e.host.Do(func() (err error) {
		out, err = e.RawExec.ExecPlugin(ctx, path, stdin, environ)
		return err
	})
	return out, err
}

// Close releases what NewCNI took. Pods keep their network.
func (c *CNI) Close() { _ = c.host.Close() }

// Ready is nil while there is a network list and its plugins say that they work.
func (c *CNI) Ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.notYet != nil {
		// The words that tools know from a kubelet.
		return fmt.Errorf("NetworkReady=false reason:NetworkPluginNotReady message:Network plugin returns error: %w", c.notYet)
	}
	return nil
}

// Run follows the network lists and the plugins' status until ctx ends.
func (c *CNI) Run(ctx context.Context) error {
	if err := os.MkdirAll(c.confDir, 0o755); err != nil {
		return fmt.Errorf("make the directory of network lists: %w", err)
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch %s: %w", c.confDir, err)
	}
	defer w.Close()
	if err := w.Add(c.confDir); err != nil {
		return fmt.Errorf("watch %s: %w", c.confDir, err)
	}
	for {
		again := statusEvery
		if !c.look(ctx) {
			again = statusRetry
		}
		timer := time.NewTimer(again)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case err := <-w.Errors:
			c.log.Warn("changes of the network lists may be seen late", "directory", c.confDir, "error", err)
		case <-w.Events:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// look reads the lists, asks the plugins, and says whether the network is ready.
func (c *CNI) look(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	list, err := loadList(c.confDir)
	if err == nil {
		c.mu.Lock()
		c.list = list
		c.mu.Unlock()
		err = c.works(ctx, list)
	}
	c.mu.Lock()
	was := c.notYet
	c.notYet = err
	c.mu.Unlock()
	switch {
	case err != nil && (was == nil || was.Error() != err.Error()):
		c.log.Error("pod network is not ready", "error", err)
		c.changed()
	case err == nil && was != nil:
		c.log.Info("pod network is ready", "network", list.Name, "cniVersion", list.CNIVersion)
		c.changed()
	}
	return err == nil
}

// works asks whether the plugins are there, know the list's version and say that they work.
// The first time it has them release what belongs to pods that are gone: before Ready, so
// that none is being set up.
func (c *CNI) works(ctx context.Context, list *libcni.NetworkConfigList) error {
	if c.valid != string(list.Bytes) {
		if _, err := c.lib.ValidateNetworkList(ctx, list); err != nil {
			return fmt.Errorf("network %s: %w", list.Name, err)
		}
		c.valid = string(list.Bytes)
	}
	if err := c.lib.GetStatusNetworkList(ctx, list); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	if !c.clean {
		c.releaseGone(ctx, list)
		c.clean = true
	}
	return nil
}

// Setup implements Network.
func (c *CNI) Setup(ctx context.Context, pod PodNetwork) (PodAddress, error) {
	a, err := c.setUp(ctx, pod)
	if err != nil {
		return PodAddress{}, fmt.Errorf("set up network of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return a, nil
}

func (c *CNI) setUp(ctx context.Context, pod PodNetwork) (PodAddress, error) {
	if err := checkUID(pod.PodUID); err != nil {
		return PodAddress{}, err
	}
	if err := c.Ready(); err != nil {
		return PodAddress{}, fmt.Errorf("pod network is not ready: %w", err)
	}
	unlock, err := c.locks.LockContext(ctx, pod.PodUID)
	if err != nil {
		return PodAddress{}, err
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	path := c.layout.Namespace(pod.PodUID, "net")
	there := linuxns.Bound(path)
	if !there { // what plugins keep of a namespace that is gone does not fit another
		if err := c.release(ctx, pod.PodUID); err != nil {
			return PodAddress{}, err
		}
		if err := linuxns.Create(path); err != nil {
			return PodAddress{}, err
		}
	}
	ips, problem, err := c.attach(ctx, pod, path, there)
	if err != nil {
		return PodAddress{}, err
	}
	return PodAddress{Path: path, IPs: ips, Problem: problem}, c.inside(path, pod.Sysctls)
}

// inside does in the namespace what plugins do not: loopback and the pod's sysctls.
func (c *CNI) inside(path string, sysctls map[string]string) error {
	ns, err := linuxns.Open(path)
	if err != nil {
		return err
	}
	defer ns.Close()
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	if err := up(h, "lo"); err != nil {
		return err
	}
	return setSysctls(ns, sysctls)
}

// Teardown implements Network. The namespace goes only once the plugins have released what
// they have of it.
func (c *CNI) Teardown(ctx context.Context, podUID string) error {
	fail := func(err error) error { return fmt.Errorf("tear down network of pod %s: %w", podUID, err) }
	if err := checkUID(podUID); err != nil {
		return fail(err)
	}
	unlock, err := c.locks.LockContext(ctx, podUID)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(ctx, cniTimeout)
	defer cancel()
	if err := c.release(ctx, podUID); err != nil {
		return fail(err)
	}
	if err := removeNamespace(c.layout, podUID); err != nil {
		return fail(err)
	}
	return nil
}

// List implements Network: namespaces, and what the cache has of addresses. A pod whose
// namespace is gone is there until it was released.
func (c *CNI) List(ctx context.Context) (map[string]PodAddress, error) {
	out, err := namespaces(c.layout)
	if err != nil {
		return nil, fmt.Errorf("list pod networks: %w", err)
	}
	attachments, err := c.lib.GetCachedAttachments("")
	if err != nil {
		return nil, fmt.Errorf("list pod networks: %w", err)
	}
	for _, at := range attachments {
		a := out[at.ContainerID]
		if a.IPs, err = c.cachedAddresses(at); err != nil {
			a.IPs = []netip.Addr{}
		}
		out[at.ContainerID] = a
	}
	return out, ctx.Err()
}

// Dial implements Network.
func (c *CNI) Dial(ctx context.Context, podUID, network, address string) (net.Conn, error) {
	return dialPod(ctx, c.layout, podUID, network, address)
}

// attach finds the pod's attachment or makes one. A namespace that was there without an
// attachment is the rest of a killed Setup, of which plugins may know something.
func (c *CNI) attach(ctx context.Context, pod PodNetwork, path string, there bool) (ips []netip.Addr, problem string, err error) {
	if ips, problem, ok := c.attached(ctx, pod.PodUID, path); ok {
		return ips, problem, nil
	}
	if there {
		if err := c.release(ctx, pod.PodUID); err != nil {
			return nil, "", err
		}
	}
	ips, err = c.add(ctx, pod, path)
	return ips, "", err
}

// add makes the pod's attachment, all of it or nothing.
func (c *CNI) add(ctx context.Context, pod PodNetwork, path string) ([]netip.Addr, error) {
	list := c.current()
	rt, err := runtimeConf(list, pod, path)
	if err != nil {
		return nil, err
	}
	result, err := c.lib.AddNetworkList(ctx, list, rt)
	var ips []netip.Addr
	if err == nil {
		ips, err = addresses(result)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), cniTimeout)
		defer cancel()
		return nil, errors.Join(fmt.Errorf("network %s: %w", list.Name, err), c.lib.DelNetworkList(undo, list, rt))
	}
	return ips, nil
}

// attached are the addresses of an attachment that is there, with what CHECK finds wrong with
// it. That is left alone: containers may be running, and no other address would help them.
func (c *CNI) attached(ctx context.Context, uid, path string) (ips []netip.Addr, problem string, ok bool) {
	attachments, err := c.lib.GetCachedAttachments(uid)
	if err != nil || len(attachments) == 0 {
		return nil, "", false
	}
	at := attachments[0]
	if ips, err = c.cachedAddresses(at); err != nil {
		return nil, "", false
	}
	if list, err := c.listOf(at); err == nil {
		err := c.lib.CheckNetworkList(ctx, list, runtimeConfOf(at, path))
		if err != nil && !errors.Is(err, libcni.ErrorCheckNotSupp) {
			c.changedNetworks.Inc()
			problem = fmt.Sprintf("network %s: %v", at.Network, err)
		}
	}
	return ips, problem, true
}

// Metrics are for the agent's registry.
func (c *CNI) Metrics() []prometheus.Collector { return []prometheus.Collector{c.changedNetworks} }

// release has the plugins undo what they did for a pod, each attachment as it was made. It
// is idempotent, as DEL is.
func (c *CNI) release(ctx context.Context, uid string) error {
	path := c.layout.Namespace(uid, "net")
	if !linuxns.Bound(path) {
		path = "" // plugins then release what they keep elsewhere
	}
	attachments, err := c.lib.GetCachedAttachments(uid)
	if err != nil {
		return fmt.Errorf("read the attachments: %w", err)
	}
	for _, at := range attachments {
		if err := c.detach(ctx, at, path); err != nil {
			return err
		}
	}
	if len(attachments) > 0 || path == "" {
		return nil
	}
	list := c.current()
	if list == nil {
		return fmt.Errorf("no network list in %s says what to release", c.confDir)
	}
	rt := &libcni.RuntimeConf{ContainerID: uid, NetNS: path, IfName: podLink}
	if err := c.lib.DelNetworkList(ctx, list, rt); err != nil {
		return fmt.Errorf("network %s: %w", list.Name, err)
	}
	return nil
}

func (c *CNI) detach(ctx context.Context, at *libcni.NetworkAttachment, path string) error {
	list, err := c.listOf(at)
	if err == nil {
		err = c.lib.DelNetworkList(ctx, list, runtimeConfOf(at, path))
	}
	if err != nil {
		return fmt.Errorf("network %s: %w", at.Network, err)
	}
	return nil
}

// releaseGone has plugins forget pods whose namespaces are gone: those of before a reboot,
// and those of an agent that was killed.
func (c *CNI) releaseGone(ctx context.Context, list *libcni.NetworkConfigList) {
	attachments, err := c.lib.GetCachedAttachments("")
	valid := []types.GCAttachment{}
	for _, at := range attachments {
		if linuxns.Bound(c.layout.Namespace(at.ContainerID, "net")) {
			valid = append(valid, types.GCAttachment{ContainerID: at.ContainerID, IfName: at.IfName})
			continue
		}
		err = errors.Join(err, c.detach(ctx, at, ""))
	}
	if err = errors.Join(err, c.lib.GCNetworkList(ctx, list, &libcni.GCArgs{ValidAttachments: valid})); err != nil {
		c.log.Warn("network plugins may hold addresses of pods that are gone", "network", list.Name, "error", err)
	}
}

func (c *CNI) current() *libcni.NetworkConfigList {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.list
}
