package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/vk-metal/vk-metal/internal/config"
)

// PoolsKey is the key of the ConfigMap that holds the pools.
const PoolsKey = "pools.yaml"

// Options of a Controller.
type Options struct {
	Client kubernetes.Interface
	// Namespace and ConfigMap name the pools.
	Namespace, ConfigMap string
	// All takes Services without a loadBalancerClass as well.
	All      bool
	Recorder record.EventRecorder
	Log      *slog.Logger
}

// Controller gives addresses to Services. Only one may run in a cluster.
type Controller struct {
	o    Options
	wake chan struct{}

	mu    sync.Mutex
	pools []config.Pool
	known bool // the pools were read

	services cache.SharedIndexInformer
	written  map[types.UID]*corev1.Service // what the informer does not show yet
	told     map[string]string             // last error by Service
}

// New makes a Controller.
func New(o Options) *Controller {
	return &Controller{o: o, wake: make(chan struct{}, 1), written: map[types.UID]*corev1.Service{}, told: map[string]string{}}
}

func (c *Controller) kick() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

const (
	settle = 50 * time.Millisecond // changes come in bursts
	retry  = 5 * time.Second
)

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	c.services = informers.NewSharedInformerFactory(c.o.Client, 0).Core().V1().Services().Informer()
	poolMaps := informers.NewSharedInformerFactoryWithOptions(c.o.Client, 0, informers.WithNamespace(c.o.Namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("metadata.name", c.o.ConfigMap).String()
		})).Core().V1().ConfigMaps().Informer()
	wake := cache.ResourceEventHandlerFuncs{
		AddFunc: func(any) { c.kick() }, UpdateFunc: func(any, any) { c.kick() }, DeleteFunc: func(any) { c.kick() },
	}
	if _, err := c.services.AddEventHandler(wake); err != nil {
		return fmt.Errorf("watch Services: %w", err)
	}
	if _, err := poolMaps.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: c.usePools, UpdateFunc: func(_, obj any) { c.usePools(obj) },
	}); err != nil {
		return fmt.Errorf("watch the pools: %w", err)
	}
	var running sync.WaitGroup
	defer running.Wait()
	running.Go(func() { c.services.RunWithContext(ctx) })
	running.Go(func() { poolMaps.RunWithContext(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), c.services.HasSynced, poolMaps.HasSynced) {
		return nil
	}
	c.o.Log.Info("giving addresses to LoadBalancer Services")
	for {
		var again <-chan time.Time
		if err := c.sync(ctx); err != nil && ctx.Err() == nil {
			c.o.Log.Error("not all Services have what they should", "error", err)
			again = time.After(retry)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-again:
		case <-c.wake:
			select {
			case <-ctx.Done():
			case <-time.After(settle):
			}
		}
	}
}

// usePools reads the ConfigMap; a mistake leaves the pools of before, and a deleted
// ConfigMap too: Services keep what they have.
func (c *Controller) usePools(obj any) {
	m, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return
	}
	pools, err := config.ParsePools(c.o.Namespace+"/"+c.o.ConfigMap+"/"+PoolsKey, []byte(m.Data[PoolsKey]))
	if err != nil {
		c.o.Log.Error("cannot use the address pools, those of before stay", "error", err)
		c.o.Recorder.Event(m, corev1.EventTypeWarning, "PoolsInvalid", err.Error())
		return
	}
	c.mu.Lock()
	c.pools, c.known = pools, true
	c.mu.Unlock()
	c.kick()
}

// sync decides for all Services and writes what differs.
func (c *Controller) sync(ctx context.Context) error {
	c.mu.Lock()
	pools, known := c.pools, c.known
	c.mu.Unlock()
	if !known {
		return nil
	}
	var wishes []Service
	objects, seen := map[string]*corev1.Service{}, map[types.UID]bool{}
	var errs []error
	for _, obj := range c.services.GetStore().List() {
		s, ok := obj.(*corev1.Service)
		if !ok {
			continue
		}
		key := s.Namespace + "/" + s.Name
		s = c.newest(s)
		seen[s.UID] = true
		if Ours(s, c.o.All) {
			wishes, objects[key] = append(wishes, ServiceOf(s)), s
		} else if c.left(s, pools) {
			errs = append(errs, c.write(ctx, s, nil))
		}
	}
	for key, d := range Allocate(pools, wishes) {
		s := objects[key]
		c.tell(s, d)
		if !slices.Equal(d.Addrs, ingress(s)) {
			errs = append(errs, c.write(ctx, s, d.Addrs))
		}
	}
	for uid := range c.written {
		if !seen[uid] {
			delete(c.written, uid)
		}
	}
	for key := range c.told {
		if objects[key] == nil {
			delete(c.told, key)
		}
	}
	return errors.Join(errs...)
}

// newest is the Service as the informer shows it, or as it was written since: an address
// that was just given away must not be given to another.
func (c *Controller) newest(s *corev1.Service) *corev1.Service {
	mine, ok := c.written[s.UID]
	if !ok {
		return s
	}
	shown, err := strconv.ParseUint(s.ResourceVersion, 10, 64)
	written, err2 := strconv.ParseUint(mine.ResourceVersion, 10, 64)
	if err == nil && err2 == nil && shown < written {
		return mine
	}
	delete(c.written, s.UID)
	return s
}

// left says whether a Service that is no LoadBalancer any more still shows our addresses.
func (c *Controller) left(s *corev1.Service, pools []config.Pool) bool {
	have := ingress(s)
	a := allocation{pools: pools}
	return s.Spec.Type != corev1.ServiceTypeLoadBalancer && len(have) > 0 && a.poolOf(have[0]) != nil
}

// tell makes an event of a decision's error, once.
func (c *Controller) tell(s *corev1.Service, d Decision) {
	key, text := s.Namespace+"/"+s.Name, ""
	if d.Err != nil {
		text = d.Err.Error()
	}
	if c.told[key] == text {
		return
	}
	if c.told[key] = text; text != "" {
		c.o.Recorder.Event(s, corev1.EventTypeWarning, "AllocationFailed", text)
	}
}

// write puts addresses into the status. A conflict is answered by the next run.
func (c *Controller) write(ctx context.Context, s *corev1.Service, addrs []netip.Addr) error {
	now := s.DeepCopy()
	now.Status.LoadBalancer.Ingress = nil
	var texts []string
	for _, a := range addrs {
		mode := corev1.LoadBalancerIPModeVIP
		now.Status.LoadBalancer.Ingress = append(now.Status.LoadBalancer.Ingress, corev1.LoadBalancerIngress{IP: a.String(), IPMode: &mode})
		texts = append(texts, a.String())
	}
	done, err := c.o.Client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, now, metav1.UpdateOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("write addresses of Service %s/%s: %w", s.Namespace, s.Name, err)
	}
	c.written[done.UID] = done
	c.o.Log.Info("addresses of a Service changed", "service", s.Namespace+"/"+s.Name, "addresses", texts)
	if len(texts) > 0 {
		c.o.Recorder.Event(s, corev1.EventTypeNormal, "AddressAssigned", strings.Join(texts, ", "))
	}
	return nil
}
