package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/vk-metal/vk-metal/tests/cluster"
)

const (
	// oracleServices are made for each seed, and changed so often.
	oracleServices, oracleChanges = 24, 3
	// oracleLeast is how many questions a seed's states have to give.
	oracleLeast = 400
	// atOnce are asked.
	atOnce = 32
)

// attempts are how often a question is asked until the sides agree; every time anew, as the endpoints are
// drawn by lot.
var attempts = []struct {
	n        int
	patience time.Duration
}{{12, 2 * time.Second}, {64, 5 * time.Second}, {128, 10 * time.Second}, {200, 20 * time.Second}}

// TestOracle compares vk-metal's service proxy with kube-proxies in nftables mode: each serves one node, and
// is asked the same questions about the same random Services, seen from its node, before and after
// changes. VK_METAL_ORACLE_SEEDS names the seeds, VK_METAL_ORACLE_PROXY one kube-proxy (see
// cluster.ParseServiceProxy).
func TestOracle(t *testing.T) {
	if shared != nil && os.Getenv(moreTests) == "" {
		t.Skip("left out by CI: set " + moreTests + "=1 (make e2e-more)")
	}
	e := setupFor(t, 30*time.Minute)
	w := newOracleWorld(e)
	t.Log("no SCTP: the kernel has no sockets for it")
	proxies := []cluster.ServiceProxy{cluster.ServiceProxyKube, cluster.ServiceProxyNewKube}
	if name := os.Getenv("VK_METAL_ORACLE_PROXY"); name != "" {
		one, err := cluster.ParseServiceProxy(name)
		if err != nil {
			t.Fatal(err)
		}
		proxies = []cluster.ServiceProxy{one}
	}
	for _, proxy := range proxies {
		t.Run(string(proxy), func(t *testing.T) { newOracle(w.against(t, proxy)).run() })
	}
}

// seeds are those that the environment names.
func (o *oracle) seeds() (out []uint64) {
	o.Helper()
	text := "1 2 3"
	if given := os.Getenv("VK_METAL_ORACLE_SEEDS"); given != "" {
		text = given
	}
	for field := range strings.FieldsSeq(text) {
		seed, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			o.Fatalf("VK_METAL_ORACLE_SEEDS: %v", err)
		}
		out = append(out, seed)
	}
	return out
}

func (o *oracle) run() {
	o.Helper()
	for _, seed := range o.seeds() {
		o.seed(seed)
	}
	o.flowsMoveOn()
	o.forget()
	for _, k := range known {
		o.Logf("%d differences: %s", o.excused[k.why], k.why)
	}
}

// oracle asks both sides.
type oracle struct {
	*oracleWorld
	client kubernetes.Interface
	live   [2]map[string]*corev1.Service
	round  int // of the canary

	mu      sync.Mutex
	excused map[string]int
}

func newOracle(w *oracleWorld) *oracle {
	w.Helper()
	config := rest.CopyConfig(w.c.Config)
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		w.Fatal(err)
	}
	return &oracle{oracleWorld: w, client: client, live: [2]map[string]*corev1.Service{{}, {}}, excused: map[string]int{}}
}

// seed makes the seed's Services, asks, and asks again after each change.
func (o *oracle) seed(seed uint64) {
	o.Helper()
	r := rand.New(rand.NewPCG(seed, 0))
	specs := make([]*spec, oracleServices)
	for i := range specs {
		specs[i] = randomSpec(r, fmt.Sprintf("s%d-%d", seed, i))
	}
	o.put(specs)
	begin := time.Now()
	count := o.compare(specs, nil)
	for range oracleChanges {
		what := map[string]string{}
		for i, s := range specs {
			if !s.Gone {
				specs[i], what[s.Name] = s.change(r)
			}
		}
		o.put(specs)
		count += o.compare(specs, what)
	}
	o.Logf("seed %d: %d questions in %s", seed, count, time.Since(begin).Round(time.Second))
	if count < oracleLeast {
		o.Errorf("seed %d asks %d questions, want %d at least", seed, count, oracleLeast)
	}
	for _, s := range specs {
		s.Gone = true
	}
	o.put(specs)
}

// put makes the Services of both sides as they are specified, and waits for the proxies.
func (o *oracle) put(specs []*spec) {
	o.Helper()
	group, ctx := errgroup.WithContext(o.Context())
	group.SetLimit(8)
	for i, s := range o.sides {
		for _, spec := range specs {
			had := o.live[i][spec.Name]
			if had == nil && spec.Gone {
				continue
			}
			s.external(spec.Name, corev1.IPv4Protocol, 0) // the numbers are given before others ask for them
			group.Go(func() error {
				live, err := o.putOne(ctx, s, spec, had)
				if err != nil {
					return fmt.Errorf("put %s: %w", describeSpec(spec), err)
				}
				o.mu.Lock()
				defer o.mu.Unlock()
				if o.live[i][spec.Name] = live; live == nil {
					delete(o.live[i], spec.Name)
				}
				return nil
			})
		}
	}
	if err := group.Wait(); err != nil {
		o.Fatal(err)
	}
	for i, s := range o.sides {
		for _, live := range o.live[i] {
			o.routeClusterIPs(s, live)
		}
	}
	o.settle()
}

func (o *oracle) putOne(ctx context.Context, s *side, spec *spec, had *corev1.Service) (live *corev1.Service, err error) {
	services := o.client.CoreV1().Services(o.ns)
	object := spec.service(s, had)
	switch {
	case spec.Gone:
		if err := services.Delete(ctx, object.Name, metav1.DeleteOptions{}); err != nil {
			return nil, err
		}
		return nil, o.putSlices(ctx, s, spec)
	case had == nil:
		live, err = services.Create(ctx, object, metav1.CreateOptions{})
	default:
		live, err = services.Update(ctx, object, metav1.UpdateOptions{})
	}
	if err != nil {
		return nil, err
	}
	live.Status.LoadBalancer = spec.status(s)
	if live, err = services.UpdateStatus(ctx, live, metav1.UpdateOptions{}); err != nil {
		return nil, err
	}
	return live, o.putSlices(ctx, s, spec)
}

func (o *oracle) putSlices(ctx context.Context, s *side, spec *spec) error {
	client := o.client.DiscoveryV1().EndpointSlices(o.ns)
	for _, object := range spec.slices(s) {
		if spec.Gone {
			if err := client.Delete(ctx, object.Name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
				return err
			}
			continue
		}
		_, err := client.Update(ctx, object, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = client.Create(ctx, object, metav1.CreateOptions{})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// canary is what settle changes.
const canary = "canary"

// forget deletes the canary, the last of the Services.
func (o *oracle) forget() {
	o.Helper()
	for i, s := range o.sides {
		if _, err := o.putOne(o.Context(), s, &spec{Name: canary, Families: bothFamilies, Gone: true}, o.live[i][canary]); err != nil {
			o.Fatal(err)
		}
	}
}

// settle returns when both proxies have acted on all that was written before: each version of IP of
// a Service and of its slices, which they hear of one after the other.
func (o *oracle) settle() {
	o.Helper()
	o.round++
	target := oraclePorts[o.round%2]
	wanted := &spec{
		Name: canary, Type: corev1.ServiceTypeClusterIP, Families: bothFamilies,
		Ports:     []portSpec{{Name: "p", Protocol: corev1.ProtocolTCP, Port: int32(1000 + o.round), First: target, Second: target}},
		Endpoints: []endpointSpec{{Role: "here-0"}},
	}
	for i, s := range o.sides {
		live, err := o.putOne(o.Context(), s, wanted, o.live[i][canary])
		if err != nil {
			o.Fatal(err)
		}
		o.live[i][canary] = live
		for _, ipv6 := range []bool{false, true} {
			missing := ""
			q, want := question{wanted, 0, ipv6, frontCluster, "here-client"}, fmt.Sprintf("here-0:%d sees the client", target)
			o.eventually(2*time.Minute, func() string {
				if got := o.ask(s, q, live, 1, time.Second); got.String() != want {
					missing = fmt.Sprintf("%s does not act: %s: %s, want %s", s.proxy, q, got, want)
				} else {
					missing = ""
				}
				return missing
			})
			if missing != "" {
				o.FailNow()
			}
		}
	}
}

// compare asks everything on both sides, and reports what differs and is not known to.
func (o *oracle) compare(specs []*spec, what map[string]string) (count int) {
	o.Helper()
	var group errgroup.Group
	group.SetLimit(atOnce)
	for _, s := range specs {
		if s.Gone {
			continue
		}
		for _, q := range s.questions(o.live[0][s.Name]) {
			count++
			group.Go(func() error {
				o.check(q, what[s.Name])
				return nil
			})
		}
	}
	_ = group.Wait()
	return count
}

// check asks one question until the sides agree.
func (o *oracle) check(q question, what string) {
	var got [2]answer
	for i, a := range attempts {
		if i > 0 && o.excuse(q, got) {
			return
		}
		for k, s := range o.sides {
			got[k] = o.ask(s, q, o.live[k][q.spec.Name], a.n, a.patience)
		}
		if got[0].String() == got[1].String() {
			return
		}
	}
	if !o.excuse(q, got) {
		o.differ(q, what, got)
	}
}

func (o *oracle) differ(q question, what string, got [2]answer) {
	if what != "" {
		what = ", after a change of: " + what
	}
	o.Errorf("%s%s\n  %s: %s\n  %s: %s\n%s", q, what, o.sides[0].proxy, got[0], o.sides[1].proxy, got[1], describeSpec(q.spec))
}

// excuse says whether the difference is known, and counts it.
func (o *oracle) excuse(q question, got [2]answer) bool {
	for _, k := range known {
		if k.is(q, got[0], got[1]) {
			o.mu.Lock()
			defer o.mu.Unlock()
			o.excused[k.why]++
			return true
		}
	}
	return false
}

func describeSpec(s *spec) string {
	text, _ := json.Marshal(s)
	return string(text)
}

// routeClusterIPs has the outside host reach them by way of the side's node.
func (o *oracle) routeClusterIPs(s *side, live *corev1.Service) {
	o.Helper()
	for _, text := range live.Spec.ClusterIPs {
		if to, ok := hostPrefix(text); ok {
			o.route(to, s.place("here-node").addr(to.Addr().Is6()))
		}
	}
}
