// Package testcluster starts a real control plane on loopback for tests: etcd,
// kube-apiserver with Node,RBAC authorization and NodeRestriction, and
// kube-controller-manager, which signs certificates. The program is the multi-call binary
// that the environment variable VK_METAL_KUBERNETES points to; without it tests are skipped,
// or fail when VK_METAL_REQUIRE=all is set.
package testcluster

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"github.com/vk-metal/vk-metal/internal/apiclient"
)

// Cluster is a running control plane; it ends with the test.
type Cluster struct {
	CA *CA
	// URLs are the API servers.
	URLs []string
	// Admin may do everything.
	Admin kubernetes.Interface

	t    testing.TB
	dir  string
	bin  string
	etcd string
	more []string // arguments of API servers
	apis []*exec.Cmd
	port []int
}

// Options change what is started.
type Options struct {
	// APIServers, 0 is 1.
	APIServers int
	// SigningDuration is the life of certificates that the cluster signs; 0 is a day.
	SigningDuration time.Duration
	// APIServer are more arguments of the API servers.
	APIServer []string
}

// Start starts a control plane and waits until it is ready.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := &Cluster{t: t, bin: binary(t), more: o.APIServer, dir: t.TempDir(), CA: NewCA(t, "kubernetes")}
	c.files()
	c.startEtcd()
	for range max(o.APIServers, 1) {
		c.port = append(c.port, freePort(t))
		c.apis = append(c.apis, nil)
		c.URLs = append(c.URLs, fmt.Sprintf("https://127.0.0.1:%d", c.port[len(c.port)-1]))
		c.StartAPIServer(len(c.apis) - 1)
	}
	c.Admin = c.Client(c.CA.Issue(t, "admin", "system:masters"))
	c.startControllerManager(o)
	c.allowJoin()
	return c
}

func binary(t testing.TB) string {
	path := os.Getenv("VK_METAL_KUBERNETES")
	if path == "" {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("VK_METAL_KUBERNETES does not point to the Kubernetes programs")
		}
		t.Skip("needs a Kubernetes control plane: set VK_METAL_KUBERNETES to the multi-call program of tests/cmd/kubernetes")
	}
	return path
}

func (c *Cluster) files() {
	server := c.CA.Issue(c.t, "kube-apiserver")
	key := newKey(c.t)
	for name, data := range map[string][]byte{
		"ca.crt": c.CA.PEM(), "ca.key": keyPEM(c.t, c.CA.key),
		"server.crt": CertPEM(server), "server.key": KeyPEM(c.t, server), "sa.key": keyPEM(c.t, key),
	} {
		write(c.t, c.dir, name, data)
	}
}

func (c *Cluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *Cluster) startEtcd() {
	client, peer := freePort(c.t), freePort(c.t)
	c.etcd = fmt.Sprintf("http://127.0.0.1:%d", client)
	peerURL := fmt.Sprintf("http://127.0.0.1:%d", peer)
	c.start("etcd", "--name=e", "--data-dir="+c.path("etcd"), "--listen-client-urls="+c.etcd, "--advertise-client-urls="+c.etcd,
		"--listen-peer-urls="+peerURL, "--initial-advertise-peer-urls="+peerURL, "--initial-cluster=e="+peerURL, "--unsafe-no-fsync")
	c.await("etcd", c.etcd+"/health", http.DefaultClient)
}

// StartAPIServer starts the i-th API server (again) and waits until it is ready.
func (c *Cluster) StartAPIServer(i int) {
	c.t.Helper()
	c.apis[i] = c.start("kube-apiserver", append([]string{
		"--etcd-servers=" + c.etcd, fmt.Sprintf("--secure-port=%d", c.port[i]), "--bind-address=127.0.0.1",
		"--advertise-address=127.0.0.1", "--tls-cert-file=" + c.path("server.crt"), "--tls-private-key-file=" + c.path("server.key"),
		"--client-ca-file=" + c.path("ca.crt"), "--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + c.path("sa.key"), "--service-account-signing-key-file=" + c.path("sa.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--service-cluster-ip-range=10.96.0.0/16",
		"--enable-bootstrap-token-auth", "--allow-privileged", "--endpoint-reconciler-type=none", "--watch-cache=true",
	}, c.more...)...)
	c.await("kube-apiserver", c.URLs[i]+"/readyz", c.httpClient())
}

// KillAPIServer ends the i-th API server without notice.
func (c *Cluster) KillAPIServer(i int) {
	_ = c.apis[i].Process.Kill()
	_, _ = c.apis[i].Process.Wait()
}

func (c *Cluster) startControllerManager(o Options) {
	if o.SigningDuration == 0 {
		o.SigningDuration = 24 * time.Hour
	}
	kubeconfig := c.Kubeconfig("kcm", c.CA.Issue(c.t, "system:kube-controller-manager"))
	c.start("kube-controller-manager", "--kubeconfig="+kubeconfig, "--leader-elect=false", "--secure-port=0",
		"--controllers=*,bootstrapsigner,tokencleaner,-node-lifecycle-controller", "--use-service-account-credentials",
		"--service-account-private-key-file="+c.path("sa.key"), "--root-ca-file="+c.path("ca.crt"),
		"--cluster-signing-cert-file="+c.path("ca.crt"), "--cluster-signing-key-file="+c.path("ca.key"),
		"--cluster-signing-duration="+o.SigningDuration.String(), "--allocate-node-cidrs", "--cluster-cidr=10.244.0.0/16")
}

// start runs a part of the multi-call program until the test ends; its output is in the
// test's directory and shown when the test fails.
func (c *Cluster) start(name string, args ...string) *exec.Cmd {
	c.t.Helper()
	log, err := os.OpenFile(c.path(name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		c.t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(c.bin, args...)
	cmd.Args[0] = name
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		c.t.Fatalf("start %s: %v", name, err)
	}
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_, _ = cmd.Process.Wait()
	})
	return cmd
}

func (c *Cluster) await(name, url string, client *http.Client) {
	c.t.Helper()
	var last error
	for deadline := time.Now().Add(90 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		resp, err := client.Get(url)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
			err = fmt.Errorf("status %s", resp.Status)
		}
		last = err
	}
	log, _ := os.ReadFile(c.path(name + ".log"))
	c.t.Fatalf("%s is not ready: %v\n%s", name, last, log[max(0, len(log)-4000):])
}

func (c *Cluster) httpClient() *http.Client {
	admin := c.CA.Issue(c.t, "admin", "system:masters")
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		RootCAs: c.CA.Pool(), Certificates: []tls.Certificate{admin},
	}}}
}

// API is a way to the API servers with a client certificate.
func (c *Cluster) API(pair tls.Certificate) *apiclient.Client {
	c.t.Helper()
	client, err := apiclient.New(apiclient.Options{
		Servers: c.URLs, CA: c.CA.Pool(), Certificate: func() *tls.Certificate { return &pair }, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(client.CloseConnections)
	return client
}

// Client is a client with a client certificate.
func (c *Cluster) Client(pair tls.Certificate) kubernetes.Interface {
	c.t.Helper()
	return c.clientFor(c.API(pair).RESTConfig())
}

func (c *Cluster) clientFor(config *rest.Config) kubernetes.Interface {
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		c.t.Fatal(err)
	}
	return client
}

// Kubeconfig writes a kubeconfig for the first API server and returns its path.
func (c *Cluster) Kubeconfig(name string, pair tls.Certificate) string {
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: c.URLs[0], CertificateAuthorityData: c.CA.PEM()}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificateData: CertPEM(pair), ClientKeyData: KeyPEM(c.t, pair)}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	data, err := clientcmd.Write(*config)
	if err != nil {
		c.t.Fatal(err)
	}
	return write(c.t, c.dir, name+".kubeconfig", data)
}

// allowJoin binds what kubeadm binds, so that bootstrap tokens are good for something.
func (c *Cluster) allowJoin() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for role, group := range map[string]string{
		"system:node-bootstrapper": "system:bootstrappers",
		"system:certificates.k8s.io:certificatesigningrequests:nodeclient":     "system:bootstrappers",
		"system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": "system:nodes",
	} {
		binding := &rbacv1.ClusterRoleBinding{
			ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"},
			RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects:   []rbacv1.Subject{{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: group}},
		}
		if _, err := c.Admin.RbacV1().ClusterRoleBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
			c.t.Fatalf("bind %s: %v", role, err)
		}
	}
}

// portsAsked counts the ports that were given.
var portsAsked atomic.Int64

// freePort is one that stays free until its server starts: it is below those that the kernel
// gives to whoever asks for any, and other processes of tests begin elsewhere.
func freePort(t testing.TB) int {
	const first, count = 10000, 20000
	for range count {
		port := first + (64*os.Getpid()+int(portsAsked.Add(1)))%count
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatalf("no port from %d to %d is free", first, first+count)
	return 0
}
