package provider

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

func envWorker(t *testing.T) *worker {
	w := lone(t, "")
	w.p.deps.Objects = fakeObjects{&agent{w: &world{objects: map[string]kruntime.Object{
		"cm/ns/settings": &corev1.ConfigMap{Data: map[string]string{"color": "red", "A": "from-cm", "bad=name": "x", "1digit": "y"}},
		"secret/ns/keys": &corev1.Secret{Data: map[string][]byte{"key": {0xff, 'k'}, "A": []byte("from-secret")}},
	}}}}
	w.p.deps.Node.Allocatable = func() corev1.ResourceList {
		return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi"), corev1.ResourceCPU: resource.MustParse("4")}
	}
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	for _, s := range []*corev1.Service{
		{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "kubernetes"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.1", Ports: []corev1.ServicePort{{Name: "https", Port: 443}}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "my-db"}, Spec: corev1.ServiceSpec{ClusterIP: "fd00::5", Ports: []corev1.ServicePort{{Port: 53, Protocol: corev1.ProtocolUDP}}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "else"}, Spec: corev1.ServiceSpec{ClusterIP: "10.96.0.9", Ports: []corev1.ServicePort{{Port: 1}}}},
		{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "headless"}, Spec: corev1.ServiceSpec{ClusterIP: "None", Ports: []corev1.ServicePort{{Port: 1}}}},
	} {
		if err := index.Add(s); err != nil {
			t.Fatal(err)
		}
	}
	w.p.deps.Services = corelisters.NewServiceLister(index)
	return w
}

func field(path string) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: path}}
}

func amount(name, divisor string) *corev1.EnvVarSource {
	source := &corev1.ResourceFieldSelector{Resource: name}
	if divisor != "" {
		source.Divisor = resource.MustParse(divisor)
	}
	return &corev1.EnvVarSource{ResourceFieldRef: source}
}

func key(object, name string, optional *bool) *corev1.EnvVarSource {
	return &corev1.EnvVarSource{ConfigMapKeyRef: &corev1.ConfigMapKeySelector{
		LocalObjectReference: corev1.LocalObjectReference{Name: object}, Key: name, Optional: optional,
	}}
}

func TestEnvironment(t *testing.T) {
	from := []corev1.EnvFromSource{
		{Prefix: "P_", ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}},
		{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "keys"}}},
		{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "none"}, Optional: ptr.To(true)}},
	}
	c := podplan.Container{Container: corev1.Container{
		Name: "app", EnvFrom: from,
		Resources: corev1.ResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1500m"), corev1.ResourceMemory: resource.MustParse("100")},
		},
		Env: []corev1.EnvVar{
			{Name: "A", Value: "own"},
			{Name: "LATER", Value: "$(A) $(NAME) $(MY_DB_SERVICE_HOST) $$(A) $(NONE)"},
			{Name: "NAME", ValueFrom: field("metadata.name")},
			{Name: "IP", ValueFrom: field("status.podIP")},
			{Name: "IPS", ValueFrom: field("status.podIPs")},
			{Name: "HOST", ValueFrom: field("status.hostIP")},
			{Name: "HOSTS", ValueFrom: field("status.hostIPs")},
			{Name: "LABEL", ValueFrom: field("metadata.labels['a.b/c']")},
			{Name: "UID", ValueFrom: field("metadata.uid")},
			{Name: "CPU", ValueFrom: amount("requests.cpu", "")},
			{Name: "MILLI", ValueFrom: amount("requests.cpu", "1m")},
			{Name: "MEMORY", ValueFrom: amount("requests.memory", "1Ki")},
			{Name: "LIMIT", ValueFrom: amount("limits.memory", "1Mi")},
			{Name: "COLOR", ValueFrom: key("settings", "color", nil)},
			{Name: "ABSENT", ValueFrom: key("settings", "none", ptr.To(true))},
			{Name: "EMPTY"},
		},
	}}
	pod := etcPod(nil)
	list, err := envWorker(t).resolveEnv(t.Context(), pod, c, []string{"10.0.0.1", "fd00::1"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, e := range list {
		if _, twice := got[e.Name]; twice {
			t.Errorf("%s appears twice", e.Name)
		}
		got[e.Name] = e.Value
	}
	for name, want := range map[string]string{
		"A": "own", "LATER": "own $(NAME) fd00::5 $(A) $(NONE)", "NAME": "web-0", "IP": "10.0.0.1", "IPS": "10.0.0.1,fd00::1",
		"HOST": "192.0.2.1", "HOSTS": "192.0.2.1,2001:db8::1", "LABEL": "d", "UID": "u-1",
		"CPU": "2", "MILLI": "1500", "MEMORY": "1", "LIMIT": "1024", "COLOR": "red", "EMPTY": "",
		"P_color": "red", "P_A": "from-cm", "P_1digit": "y", "key": "\xffk",
		"KUBERNETES_SERVICE_HOST": "10.96.0.1", "KUBERNETES_SERVICE_PORT_HTTPS": "443", "KUBERNETES_PORT": "tcp://10.96.0.1:443",
		"MY_DB_PORT_53_UDP": "udp://[fd00::5]:53", "MY_DB_PORT_53_UDP_ADDR": "fd00::5",
	} {
		if value, ok := got[name]; !ok || value != want {
			t.Errorf("%s is %q (%v), want %q", name, value, ok, want)
		}
	}
	for _, name := range []string{"ABSENT", "P_bad=name", "ELSE_SERVICE_HOST", "HEADLESS_SERVICE_HOST"} {
		if value, ok := got[name]; ok {
			t.Errorf("%s is %q, want none", name, value)
		}
	}
}

func TestEnvironmentThatCannotBe(t *testing.T) {
	for want, source := range map[string]*corev1.EnvVarSource{
		`configmap "none" not found`:                      key("none", "k", nil),
		"couldn't find key none in ConfigMap ns/settings": key("settings", "none", nil),
		"unsupported fieldPath: spec.secret":              field("spec.secret"),
		"unsupported container resource : cpu":            amount("cpu", ""),
		`env "X" has a source that is not supported`:      {},
	} {
		c := podplan.Container{Container: corev1.Container{Env: []corev1.EnvVar{{Name: "X", ValueFrom: source}}}}
		if _, err := envWorker(t).resolveEnv(t.Context(), etcPod(nil), c, nil, nil); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
}

// TestServiceLinksOff leaves the API server's variables.
func TestServiceLinksOff(t *testing.T) {
	pod := etcPod(func(s *corev1.PodSpec) { s.EnableServiceLinks = ptr.To(false) })
	env, err := envWorker(t).serviceEnv(pod)
	if err != nil || env["KUBERNETES_SERVICE_HOST"] != "10.96.0.1" || env["MY_DB_SERVICE_HOST"] != "" {
		t.Errorf("%v, %v", env, err)
	}
}
