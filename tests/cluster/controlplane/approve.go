package controlplane

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

// ApproveServing approves the nodes' requests for serving certificates until ctx
// ends. Upstream has no controller for it, because only the cluster's owner knows
// which node has which address; the rig does: it is what the Node says.
func ApproveServing(ctx context.Context, client kubernetes.Interface, log *slog.Logger) error {
	factory := informers.NewSharedInformerFactory(client, 30*time.Second)
	requests := factory.Certificates().V1().CertificateSigningRequests()
	handle := func(object any) {
		request, ok := object.(*certificatesv1.CertificateSigningRequest)
		if !ok || !pending(request) {
			return
		}
		if err := approve(ctx, client, request); err != nil {
			log.Warn("serving certificate not approved", "request", request.Name, "error", err)
			return
		}
		log.Info("serving certificate approved", "request", request.Name, "node", request.Spec.Username)
	}
	// A node asks for its certificate before its Node has addresses.
	again := func(any) {
		all, err := requests.Lister().List(labels.Everything())
		if err != nil {
			return // an in-memory list: cannot fail
		}
		for _, request := range all {
			handle(request)
		}
	}
	if err := onChange(requests.Informer(), handle); err != nil {
		return fmt.Errorf("watch certificate requests: %w", err)
	}
	if err := onChange(factory.Core().V1().Nodes().Informer(), again); err != nil {
		return fmt.Errorf("watch nodes: %w", err)
	}
	factory.Start(ctx.Done())
	<-ctx.Done()
	factory.Shutdown()
	return nil
}

// onChange calls handle with every object that is added or changed.
func onChange(informer cache.SharedIndexInformer, handle func(any)) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    handle,
		UpdateFunc: func(_, object any) { handle(object) },
	})
	return err
}

func pending(request *certificatesv1.CertificateSigningRequest) bool {
	return request.Spec.SignerName == certificatesv1.KubeletServingSignerName && len(request.Status.Conditions) == 0
}

func approve(ctx context.Context, client kubernetes.Interface, request *certificatesv1.CertificateSigningRequest) error {
	name, isNode := strings.CutPrefix(request.Spec.Username, "system:node:")
	if !isNode || !slices.Contains(request.Spec.Groups, "system:nodes") {
		return fmt.Errorf("asked for by %s, which is no node", request.Spec.Username)
	}
	node, err := client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("find the node: %w", err)
	}
	if err := checkServingRequest(request, node); err != nil {
		return err
	}
	approved := request.DeepCopy()
	approved.Status.Conditions = append(approved.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{
		Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue,
		Reason: "AddressesOfNode", Message: "Every name and address is one of the Node's.",
	})
	_, err = client.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, approved.Name, approved, metav1.UpdateOptions{})
	return err
}

// checkServingRequest refuses a certificate for anything but the node's own names and
// addresses.
func checkServingRequest(request *certificatesv1.CertificateSigningRequest, node *corev1.Node) error {
	block, _ := pem.Decode(request.Spec.Request)
	if block == nil {
		return fmt.Errorf("the request holds no PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return fmt.Errorf("parse the request: %w", err)
	}
	if csr.Subject.CommonName != request.Spec.Username {
		return fmt.Errorf("common name %q is not the node's", csr.Subject.CommonName)
	}
	own := map[string]bool{node.Name: true}
	for _, address := range node.Status.Addresses {
		own[canonical(address.Address)] = true
	}
	asked := slices.Clone(csr.DNSNames)
	for _, ip := range csr.IPAddresses {
		asked = append(asked, canonical(ip.String()))
	}
	for _, name := range asked {
		if !own[name] {
			return fmt.Errorf("%s is not an address of the node", name)
		}
	}
	return nil
}

// canonical writes an address in its shortest form and leaves names alone.
func canonical(address string) string {
	if ip, err := netip.ParseAddr(address); err == nil {
		return ip.Unmap().String()
	}
	return address
}
