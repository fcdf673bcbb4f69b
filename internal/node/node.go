package node

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	vknode "github.com/virtual-kubelet/virtual-kubelet/node"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/flowcontrol"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// Options say what the Node object is made of.
type Options struct {
	Name   string
	Client kubernetes.Interface
	Host   Host
	Labels map[string]string
	Taints []corev1.Taint // set at registration only: a node may not change its own taints
	// ProviderID names this server to machine controllers; set at registration only.
	ProviderID string
	// CgroupV1 says that the server has the old kind of cgroups.
	CgroupV1 bool
	Reserved corev1.ResourceList
	// Thresholds are those of eviction: what they keep back is not allocatable.
	Thresholds []pressure.Threshold
	// Pressure returns which of MemoryPressure, DiskPressure and PIDPressure hold; nil: none.
	Pressure func() []corev1.NodeConditionType
	MaxPods  int
	// Port of the node's API.
	Port int
	// Addresses returns the node's addresses, the primary first.
	Addresses func() ([]netip.Addr, error)
	// SystemdVersion returns the manager's Version property.
	SystemdVersion func(context.Context) string
	// Checks must pass for the node to be Ready.
	Checks []Check
	// Handlers are the runtime handlers, the default one's empty name among them.
	Handlers []string
	// UserNamespaces says that pods may have their own.
	UserNamespaces bool
	// Images lists what is present; may be nil.
	Images func(context.Context) ([]corev1.ContainerImage, error)
	// Devices are further resources that the server has, and how many of them can be had now;
	// may be nil.
	Devices func() (capacity, allocatable corev1.ResourceList)
	// VolumesInUse lists attached volumes that are not to be detached; may be nil.
	VolumesInUse func() []corev1.UniqueVolumeName
	// Conditions are further conditions of our own; may be nil.
	Conditions func() []corev1.NodeCondition
	// Event tells of the Node in a kubelet's terms; may be nil. It does not block.
	Event func(kind, reason, message string)
	Log   *slog.Logger
}

// Intervals: a look at the server costs a few file reads; the lease is a kubelet's.
const (
	lookEvery     = 10 * time.Second
	leaseSeconds  = 40
	leaseRenewal  = 10 * time.Second
	retryMin      = time.Second
	retryMax      = 15 * time.Second
	requestBudget = 30 * time.Second
)

// Node registers this server and keeps its Node object and lease until Run ends. It is a task.Task.
type Node struct {
	o     Options
	ready chan struct{}
	once  sync.Once
	wake  chan struct{} // look now
	dirty chan struct{} // the latest is to be sent

	mu       sync.Mutex
	latest   *corev1.Node
	force    bool
	lookedAt time.Time
	told     bool // what the API server had when we came
	cordoned bool // as last told
}

// New looks at the server once and makes a Node; nothing is sent before Run.
func New(ctx context.Context, o Options) (*Node, error) {
	n := &Node{o: o, ready: make(chan struct{}), wake: make(chan struct{}, 1), dirty: make(chan struct{}, 1)}
	first, err := n.observe(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("describe this server: %w", err)
	}
	n.latest, n.lookedAt = first, time.Now()
	return n, nil
}

// String implements task.Task.
func (n *Node) String() string { return "node" }

// Ready is closed after the first attempt to register, failed or not: an agent that is
// restarted while the API server is down must serve its pods all the same.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Changed asks for a look at the server now.
func (n *Node) Changed() { signal(n.wake) }

// Deleted says that the Node object has gone: it is registered anew at once.
func (n *Node) Deleted() {
	n.mu.Lock()
	n.force = true
	n.mu.Unlock()
	signal(n.wake)
}

// Latest is the Node as last seen by us. It must not be changed.
func (n *Node) Latest() *corev1.Node {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.latest
}

// Alive fails when the looks at the server have stopped: the watchdog's question.
func (n *Node) Alive() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if age := time.Since(n.lookedAt); age > lookEvery+2*checkTimeout {
		return fmt.Errorf("node status was last looked at %s ago", age.Round(time.Second))
	}
	return nil
}

// Run implements task.Task.
func (n *Node) Run(ctx context.Context) error {
	n.tellStart()
	var looks sync.WaitGroup
	looks.Go(func() { n.look(ctx) })
	defer looks.Wait()
	backoff := flowcontrol.NewBackOff(retryMin, retryMax)
	for {
		err := n.attempt(ctx)
		n.once.Do(func() { close(n.ready) })
		if ctx.Err() != nil {
			return nil
		}
		backoff.Next("register", time.Now())
		wait := backoff.Get("register")
		n.o.Log.Warn("cannot keep the Node registered, will retry", "node", n.o.Name, "in", wait, "err", err)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil
		}
	}
}

// attempt runs virtual-kubelet's node controller until it fails or ctx ends.
func (n *Node) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if err := n.takeOver(ctx); err != nil {
		return err
	}
	nodes := nodeClient{NodeInterface: n.o.Client.CoreV1().Nodes(), latest: n.Latest}
	controller, err := vknode.NewNodeController(reporter{n}, n.Latest().DeepCopy(), nodes,
		vknode.WithNodeEnableLeaseV1WithRenewInterval(
			n.o.Client.CoordinationV1().Leases(corev1.NamespaceNodeLease), leaseSeconds, leaseRenewal),
		vknode.WithNodeStatusUpdateErrorHandler(func(ctx context.Context, err error) error {
			return n.recreate(ctx, nodes, err)
		}))
	if err != nil {
		return fmt.Errorf("make node controller: %w", err)
	}
	go func() {
		select {
		case <-controller.Ready():
			n.o.Log.Info("node registered", "node", n.o.Name)
			n.once.Do(func() { close(n.ready) })
		case <-ctx.Done():
		}
	}()
	return controller.Run(ctx)
}

// takeOver continues the transition times of the conditions that the API server has.
func (n *Node) takeOver(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestBudget)
	defer cancel()
	there, err := n.o.Client.CoreV1().Nodes().Get(ctx, n.o.Name, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("read the Node: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.told {
		n.told = true
		n.tellReboot(there.Status.NodeInfo.BootID, n.latest.Status.NodeInfo.BootID)
		n.tellChanges(there.Status.Conditions, n.latest.Status.Conditions)
	}
	if err != nil {
		return nil
	}
	n.latest = n.latest.DeepCopy()
	keepTransitions(metav1.Now(), there.Status.Conditions, n.latest.Status.Conditions)
	return nil
}

// recreate registers the Node again when somebody deleted it.
func (n *Node) recreate(ctx context.Context, nodes nodeClient, cause error) error {
	if !apierrors.IsNotFound(cause) {
		return cause
	}
	n.o.Log.Warn("the Node was deleted, registering it again", "node", n.o.Name)
	_, err := nodes.Create(ctx, n.Latest().DeepCopy(), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("register the Node again: %w", err)
	}
	return nil
}

// look keeps latest true until ctx ends.
func (n *Node) look(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-n.wake:
		}
		now, err := n.observe(ctx, n.Latest().Status.Conditions)
		if err != nil {
			n.o.Log.Warn("cannot describe this server", "err", err)
		}
		n.update(now)
	}
}

// update stores what was seen (nil: nothing could be) and has it sent when it means a change.
func (n *Node) update(now *corev1.Node) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lookedAt = time.Now()
	if now == nil {
		return
	}
	if n.force || !sameStatus(&n.latest.Status, &now.Status) {
		signal(n.dirty)
	}
	n.force = false
	if n.told {
		n.tellChanges(n.latest.Status.Conditions, now.Status.Conditions)
	}
	n.latest = now
}

// sameStatus compares without heartbeats.
func sameStatus(a, b *corev1.NodeStatus) bool {
	a, b = a.DeepCopy(), b.DeepCopy()
	for _, status := range []*corev1.NodeStatus{a, b} {
		for i := range status.Conditions {
			status.Conditions[i].LastHeartbeatTime = metav1.Time{}
		}
	}
	return equality.Semantic.DeepEqual(a, b)
}

// reporter is the Node as virtual-kubelet's node.NodeProvider.
type reporter struct{ *Node }

// Ping says that the agent lives; what is wrong with the node is told by its conditions.
func (r reporter) Ping(ctx context.Context) error { return ctx.Err() }

// NotifyNodeStatus sends each change until ctx ends. While the API server does not answer,
// changes are coalesced: notify blocks then.
func (r reporter) NotifyNodeStatus(ctx context.Context, notify func(*corev1.Node)) {
	go func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-r.dirty:
				notify(r.Latest().DeepCopy())
			}
		}
	}()
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
