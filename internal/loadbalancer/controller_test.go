package loadbalancer

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/internal/testcluster"
)

const testPools = "apiVersion: vk-metal.io/v1alpha1\nkind: AddressPools\npools:\n- {name: a, ranges: [192.0.2.10-192.0.2.29]}\n"

// grant creates what controller.yaml grants; the test's controller has nothing else.
func grant(t *testing.T, c *testcluster.Cluster) {
	t.Helper()
	data, err := os.ReadFile("../../packaging/manifests/controller.yaml")
	must(t, err)
	for doc := range strings.SplitSeq(string(data), "\n---\n") {
		obj, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		must(t, err)
		must(t, create(t.Context(), c.Admin, obj))
	}
}

func create(ctx context.Context, c kubernetes.Interface, obj runtime.Object) (err error) {
	o := metav1.CreateOptions{}
	switch obj := obj.(type) {
	case *rbacv1.ClusterRole:
		_, err = c.RbacV1().ClusterRoles().Create(ctx, obj, o)
	case *rbacv1.ClusterRoleBinding:
		_, err = c.RbacV1().ClusterRoleBindings().Create(ctx, obj, o)
	case *rbacv1.Role:
		_, err = c.RbacV1().Roles(obj.Namespace).Create(ctx, obj, o)
	case *rbacv1.RoleBinding:
		_, err = c.RbacV1().RoleBindings(obj.Namespace).Create(ctx, obj, o)
	}
	return err
}

// start runs a Controller with the manifest's identity.
func start(t *testing.T, c *testcluster.Cluster) (stop func()) {
	t.Helper()
	client := c.Client(c.CA.Issue(t, "system:serviceaccount:kube-system:vk-metal-controller"))
	broadcaster := record.NewBroadcaster()
	broadcaster.StartRecordingToSink(&typedcorev1.EventSinkImpl{Interface: client.CoreV1().Events("")})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	controller := New(Options{
		Client: client, Namespace: "kube-system", ConfigMap: "vk-metal-pools", All: true, Log: slog.New(slog.DiscardHandler),
		Recorder: broadcaster.NewRecorder(scheme.Scheme, corev1.EventSource{Component: "vk-metal-controller"}),
	})
	go func() { done <- controller.Run(ctx) }()
	return func() {
		cancel()
		must(t, <-done)
		broadcaster.Shutdown()
	}
}

func TestController(t *testing.T) {
	c := testcluster.Start(t, testcluster.Options{})
	grant(t, c)
	ctx := t.Context()
	_, err := c.Admin.CoreV1().ConfigMaps("kube-system").Create(ctx, &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: "vk-metal-pools"}, Data: map[string]string{PoolsKey: testPools},
	}, metav1.CreateOptions{})
	must(t, err)
	api := c.Admin.CoreV1().Services("default")
	add := func(name string, change func(*corev1.Service)) {
		s := &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: map[string]string{}},
			Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, Ports: []corev1.ServicePort{{Port: 80}}},
		}
		if change != nil {
			change(s)
		}
		_, err := api.Create(ctx, s, metav1.CreateOptions{})
		must(t, err)
	}
	has := func(name string, want ...string) {
		t.Helper()
		eventually(t, fmt.Sprintf("%s has %v", name, want), func() error {
			s, err := api.Get(ctx, name, metav1.GetOptions{})
			var got []string
			for _, a := range s.Status.LoadBalancer.Ingress {
				got = append(got, a.IP)
			}
			if err == nil && !slices.Equal(got, want) {
				err = fmt.Errorf("it has %v", got)
			}
			return err
		})
	}
	stop := start(t, c)
	add("first", nil)
	has("first", "192.0.2.10")
	add("asks", func(s *corev1.Service) { s.Annotations[AnnotationAddresses] = "192.0.2.20" })
	has("asks", "192.0.2.20")
	add("field", func(s *corev1.Service) { s.Spec.LoadBalancerIP = "192.0.2.21" })
	has("field", "192.0.2.21")
	add("other", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To("example.com/other") })
	add("class", func(s *corev1.Service) { s.Spec.LoadBalancerClass = ptr.To(Class) })
	has("class", "192.0.2.11")
	has("other")

	// Many at once, with the controller replaced in the middle: nobody has another's address.
	for i := range 20 {
		add(fmt.Sprintf("many-%d", i), nil)
		if i == 7 {
			stop()
			stop = start(t, c)
		}
	}
	defer func() { stop() }()
	eventually(t, "all addresses are given, each to one", func() error {
		list, err := api.List(ctx, metav1.ListOptions{})
		must(t, err)
		owner := map[string]string{}
		for _, s := range list.Items {
			for _, a := range s.Status.LoadBalancer.Ingress {
				if owner[a.IP] != "" {
					t.Fatalf("%s is given to %s and %s", a.IP, owner[a.IP], s.Name)
				}
				owner[a.IP] = s.Name
			}
		}
		if len(owner) != 20 {
			return fmt.Errorf("%d are given", len(owner))
		}
		return nil
	})
	has("first", "192.0.2.10")
	eventually(t, "an event tells who got none", func() error {
		events, err := c.Admin.CoreV1().Events("default").List(ctx, metav1.ListOptions{})
		must(t, err)
		for _, e := range events.Items {
			if e.Reason == "AllocationFailed" && strings.Contains(e.Message, "no free address") {
				return nil
			}
		}
		return fmt.Errorf("%d events", len(events.Items))
	})

	// What is no LoadBalancer any more gives its address to who waits.
	s, err := api.Get(ctx, "first", metav1.GetOptions{})
	must(t, err)
	s.Spec.Type = corev1.ServiceTypeClusterIP
	_, err = api.Update(ctx, s, metav1.UpdateOptions{})
	must(t, err)
	has("first")
	eventually(t, "somebody else has it", func() error {
		list, err := api.List(ctx, metav1.ListOptions{})
		must(t, err)
		for _, s := range list.Items {
			if len(s.Status.LoadBalancer.Ingress) > 0 && s.Status.LoadBalancer.Ingress[0].IP == "192.0.2.10" {
				return nil
			}
		}
		return os.ErrNotExist
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t testing.TB, what string, cond func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if err = cond(); err == nil {
			return
		}
	}
	t.Fatalf("it never became true that %s: %v", what, err)
}
