package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/component-base/metrics/legacyregistry"

	"github.com/vk-metal/vk-metal/hostgw"
	"github.com/vk-metal/vk-metal/hostgw/wireguard"
	"github.com/vk-metal/vk-metal/internal/task"
	"github.com/vk-metal/vk-metal/netns"
)

// encryption is WireGuard between the nodes; without it only what is left of it goes.
type encryption struct {
	tunnels *wireguard.Tunnels // nil where network plugins give pods their network
	keys    *nodeAnnotation
}

// openRoutes makes the routes to other nodes' pods, and their tunnels.
func (a *agent) openRoutes() (err error) {
	network := &a.cfg.Network
	a.encryption.keys = newNodeAnnotation(a, wireguard.Annotation)
	options := hostgw.Options{NodeName: a.name, Encapsulation: hostgw.Encapsulation(network.Encapsulation), VXLANPort: network.VXLANPort, Log: a.log}
	if a.pods.own == nil {
		a.encryption.keys.set("")
	} else {
		a.encryption.tunnels, err = wireguard.New(wireguard.Options{
			NodeName: a.name, Mode: wireguard.Mode(network.Encryption), Port: network.WireGuardPort, Rotation: network.WireGuardRotation,
			Keepalive: network.WireGuardKeepalive, ClusterCIDRs: network.ClusterCIDRs, PodLinks: netns.LinkGroup, Announce: a.encryption.keys.set, Log: a.log,
		})
		if err != nil {
			return err
		}
		options.Tunnels = a.encryption.tunnels
	}
	a.pods.routes, err = hostgw.New(options)
	return err
}

// encryptionTasks keep what the other nodes are told, and answer vk-metal encryption.
func (a *agent) encryptionTasks() []task.Task {
	tasks := []task.Task{task.New("encryption-keys", a.encryption.keys.keep)}
	if !a.encrypts() {
		return tasks
	}
	legacyregistry.RawMustRegister(a.encryption.tunnels)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, a.encryption.tunnels.Status()) })
	return append(tasks, task.New("encryption-socket", func(ctx context.Context, ready func()) error {
		ready()
		return serveSocket(ctx, a.g.layout.EncryptionSocket(), mux, a.log)
	}))
}

// encrypts says whether encryption is asked for.
func (a *agent) encrypts() bool {
	return a.encryption.tunnels != nil && a.cfg.Network.Encryption != string(wireguard.Off)
}

// mustEncrypt says whether nothing may leave in plain.
func (a *agent) mustEncrypt() bool {
	return a.encrypts() && a.cfg.Network.Encryption == string(wireguard.Required)
}

// tunnelOverhead is what encryption takes of each packet to other nodes, in bytes.
func tunnelOverhead(encrypts bool, self []netip.Addr) int {
	switch {
	case !encrypts:
		return 0
	case slices.ContainsFunc(self, netip.Addr.Is6):
		return wireguard.Overhead6
	}
	return wireguard.Overhead4
}

// networkUnavailable is the Node's condition of that name, which keeps pods away. Only a node
// that must encrypt says that it cannot; one that need not any more takes it back.
func (a *agent) networkUnavailable() []corev1.NodeCondition {
	const prefix = "Encryption"
	c := corev1.NodeCondition{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionFalse, Reason: prefix + "Ready", Message: "pods' traffic to other nodes is encrypted"}
	if a.mustEncrypt() {
		if err := a.encryption.tunnels.Ready(); err != nil {
			c.Status, c.Reason, c.Message = corev1.ConditionTrue, prefix+"NotReady", err.Error()
		}
		return []corev1.NodeCondition{c}
	}
	self := a.self()
	if self == nil || !slices.ContainsFunc(self.Status.Conditions, func(old corev1.NodeCondition) bool {
		return old.Type == c.Type && strings.HasPrefix(old.Reason, prefix)
	}) {
		return nil
	}
	c.Reason, c.Message = prefix+"NotRequired", "pods' traffic to other nodes need not be encrypted"
	return []corev1.NodeCondition{c}
}

// encryptionReady fails while this node must encrypt and cannot.
func (a *agent) encryptionReady(context.Context) error {
	if !a.mustEncrypt() {
		return nil
	}
	return a.encryption.tunnels.Ready()
}

// sealedNetwork is the pod network once nothing of a pod's can leave in plain that must not.
type sealedNetwork struct {
	netns.Network
	sealed func() error
}

// Ready implements netns.Network.
func (s sealedNetwork) Ready() error {
	if err := s.Network.Ready(); err != nil {
		return err
	}
	return s.sealed()
}

// networkOfPods is what pods are started with.
func (a *agent) networkOfPods() netns.Network {
	if !a.mustEncrypt() {
		return a.pods.network
	}
	return sealedNetwork{a.pods.network, a.encryption.tunnels.Sealed}
}

// notEncrypted are the nodes that there must be no plain traffic with, and no tunnel to.
func (a *agent) notEncrypted() (nodes []string) {
	if a.mustEncrypt() {
		nodes = a.encryption.tunnels.Unencrypted()
	}
	return nodes
}

func newEncryption(g *globals) *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "encryption",
		Short: "Show this node's encryption: its keys, and the way to each node's pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			body, err := askSocket(cmd.Context(), g.layout.EncryptionSocket(), http.MethodGet, "/status", "encryption (does it run, with network.encryption set?)")
			if err != nil || asJSON {
				_, _ = cmd.OutOrStdout().Write(body)
				return err
			}
			var s wireguard.Status
			if err := json.Unmarshal(body, &s); err != nil {
				return fmt.Errorf("read the agent's answer: %w", err)
			}
			return printEncryption(cmd.OutOrStdout(), &s, time.Now())
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// printEncryption shows a status to people.
func printEncryption(out io.Writer, s *wireguard.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	ago := func(t time.Time) string {
		if t.IsZero() {
			return "-"
		}
		return now.Sub(t).Round(time.Second).String()
	}
	fmt.Fprintf(w, "mode %s\n\nDEVICE\tUDP PORT\tPUBLIC KEY\tAGE\tIN USE\n", s.Mode)
	for _, d := range s.Devices {
		fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%t\n", d.Name, d.Port, d.PublicKey, ago(d.Made), d.Active)
	}
	fmt.Fprint(w, "\nNODE\tPODS\tDEVICE\tENDPOINT\tLAST HANDSHAKE\tRECEIVED\tSENT\tPROBLEM\n")
	for _, p := range s.Peers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%d\t%s\n", p.Node, p.Way, p.Device, p.Endpoint, ago(p.LastHandshake), p.Received, p.Sent, p.Problem)
	}
	if s.Error != "" {
		fmt.Fprintf(w, "\nerror: %s\n", s.Error)
	}
	return w.Flush()
}
