package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/client-go/kubernetes/scheme"
)

// atATime is how many objects etcd takes in one transaction.
const atATime = 128

// fill puts Services into etcd as the API server would, all like the canary. By the API server
// 10,000 take many minutes on two cores: for each cluster IP it goes through all that are given.
// Addresses come first: a Service that lacks its own is repaired.
func (s *services) fill(first, end int) error {
	url, config, err := s.c.ControlPlane.Etcd()
	if err != nil {
		return err
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, TLS: config, DialTimeout: 10 * time.Second})
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", err)
	}
	defer client.Close()
	for _, object := range []func(i int) (key string, gv schema.GroupVersion, obj runtime.Object){s.addressObject, s.serviceObject, s.sliceObject} {
		for from := first; from < end; from += atATime {
			var puts []clientv3.Op
			for i := from; i < min(from+atATime, end); i++ {
				key, gv, obj := object(i)
				data, err := stored(gv, obj)
				if err != nil {
					return fmt.Errorf("encode %s: %w", key, err)
				}
				puts = append(puts, clientv3.OpPut("/registry/"+key, string(data)))
			}
			if err := commit(s.ctx, client, puts); err != nil {
				return err
			}
		}
	}
	return nil
}

func commit(ctx context.Context, client *clientv3.Client, puts []clientv3.Op) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := client.Txn(ctx).Then(puts...).Commit(); err != nil {
		return fmt.Errorf("put %d objects into etcd: %w", len(puts), err)
	}
	return nil
}

// stored is an object as etcd has it.
func stored(gv schema.GroupVersion, obj runtime.Object) ([]byte, error) {
	var out bytes.Buffer
	err := scheme.Codecs.EncoderForVersion(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme), gv).Encode(obj, &out)
	return out.Bytes(), err
}

func nameOf(i int) string { return fmt.Sprintf("service-%d", i) }

// clusterIP is the i-th of a part of the range where the canary's is not.
func (s *services) clusterIP(i int) string {
	given := netip.MustParseAddr(s.canary.Spec.ClusterIP).As4()
	const lower, upper = 16, 128
	part := upper
	if given[2] >= upper {
		part = lower
	}
	return netip.AddrFrom4([4]byte{given[0], given[1], byte(part + i>>8), byte(i)}).String()
}

func (s *services) addressObject(i int) (string, schema.GroupVersion, runtime.Object) {
	ip := s.clusterIP(i)
	return "ipaddresses/" + ip, networkingv1.SchemeGroupVersion, &networkingv1.IPAddress{
		ObjectMeta: metav1.ObjectMeta{
			Name: ip, UID: uuid.NewUUID(), CreationTimestamp: s.canary.CreationTimestamp,
			Labels: map[string]string{networkingv1.LabelIPAddressFamily: "IPv4", networkingv1.LabelManagedBy: "ipallocator.k8s.io"},
		},
		Spec: networkingv1.IPAddressSpec{ParentRef: &networkingv1.ParentReference{Resource: "services", Namespace: s.ns, Name: nameOf(i)}},
	}
}

func (s *services) serviceObject(i int) (string, schema.GroupVersion, runtime.Object) {
	service := s.canary.DeepCopy()
	service.Name, service.UID, service.ResourceVersion = nameOf(i), uuid.NewUUID(), ""
	service.Spec.ClusterIP = s.clusterIP(i)
	service.Spec.ClusterIPs = []string{service.Spec.ClusterIP}
	return "services/specs/" + s.ns + "/" + service.Name, corev1.SchemeGroupVersion, service
}

func (s *services) sliceObject(i int) (string, schema.GroupVersion, runtime.Object) {
	slice, like := s.sliceOf(nameOf(i), i), s.slice
	slice.ObjectMeta = *like.ObjectMeta.DeepCopy()
	slice.Name, slice.UID, slice.ResourceVersion = nameOf(i), uuid.NewUUID(), ""
	slice.Labels[discoveryv1.LabelServiceName] = slice.Name
	return "endpointslices/" + s.ns + "/" + slice.Name, discoveryv1.SchemeGroupVersion, slice
}
