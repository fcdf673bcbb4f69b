package provider

import (
	"fmt"
	"net"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// serviceEnv makes the variables of the services that the pod can see: the API server's
// always, those of its namespace unless enableServiceLinks is off.
func (w *worker) serviceEnv(pod *corev1.Pod) (map[string]string, error) {
	out := map[string]string{}
	lister := w.p.deps.Services
	if lister == nil {
		return out, nil
	}
	chosen := map[string]*corev1.Service{}
	if api, err := lister.Services(metav1NamespaceDefault).Get("kubernetes"); err == nil && hasAddress(api) {
		chosen[api.Name] = api
	}
	if pod.Spec.EnableServiceLinks == nil || *pod.Spec.EnableServiceLinks {
		services, err := lister.Services(pod.Namespace).List(labels.Everything())
		if err != nil {
			return nil, fmt.Errorf("list services: %w", err)
		}
		for _, s := range services {
			if hasAddress(s) {
				chosen[s.Name] = s
			}
		}
	}
	for _, s := range chosen {
		addService(out, s)
	}
	return out, nil
}

const metav1NamespaceDefault = "default"

func hasAddress(s *corev1.Service) bool {
	return s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone
}

// addService makes NAME_SERVICE_HOST and _PORT and the variables of Docker's links.
func addService(out map[string]string, s *corev1.Service) {
	if len(s.Spec.Ports) == 0 {
		return
	}
	prefix := strings.ToUpper(strings.ReplaceAll(s.Name, "-", "_"))
	ip := s.Spec.ClusterIP
	out[prefix+"_SERVICE_HOST"] = ip
	out[prefix+"_SERVICE_PORT"] = strconv.Itoa(int(s.Spec.Ports[0].Port))
	for i, port := range s.Spec.Ports {
		number := strconv.Itoa(int(port.Port))
		if port.Name != "" {
			out[prefix+"_SERVICE_PORT_"+strings.ToUpper(strings.ReplaceAll(port.Name, "-", "_"))] = number
		}
		protocol := string(corev1.ProtocolTCP)
		if port.Protocol != "" {
			protocol = string(port.Protocol)
		}
		address := strings.ToLower(protocol) + "://" + net.JoinHostPort(ip, number)
		if i == 0 {
			out[prefix+"_PORT"] = address
		}
		link := prefix + "_PORT_" + number + "_" + strings.ToUpper(protocol)
		out[link] = address
		out[link+"_PROTO"] = strings.ToLower(protocol)
		out[link+"_PORT"] = number
		out[link+"_ADDR"] = ip
	}
}
