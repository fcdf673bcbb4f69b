package wireguard

import (
	"maps"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// Status is what vk-metal encryption shows. It has no secrets.
type Status struct {
	Mode    Mode           `json:"mode"`
	Error   string         `json:"error,omitempty"`
	Devices []DeviceStatus `json:"devices"`
	Peers   []PeerStatus   `json:"peers"`
}

// DeviceStatus is one device of this node.
type DeviceStatus struct {
	Name      string    `json:"name"`
	PublicKey string    `json:"publicKey"`
	Port      int       `json:"port"`
	Made      time.Time `json:"made"`   // the key
	Active    bool      `json:"active"` // sent by where the other node has answered
}

// Ways of PeerStatus.
const (
	Encrypted = "encrypted"
	Plain     = "plain"
	Blocked   = "blocked"
)

// PeerStatus is another node. The figures are those of both devices.
type PeerStatus struct {
	Node          string    `json:"node"`
	Way           string    `json:"way"`
	Device        string    `json:"device,omitempty"` // that it is sent to by
	Endpoint      string    `json:"endpoint,omitempty"`
	LastHandshake time.Time `json:"lastHandshake,omitzero"`
	Received      int64     `json:"receivedBytes"`
	Sent          int64     `json:"sentBytes"`
	Problem       string    `json:"problem,omitempty"`
}

// Status asks the kernel.
func (t *Tunnels) Status() Status {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := Status{Mode: t.o.Mode}
	if t.synced != nil {
		s.Error = t.synced.Error()
	}
	kernel := map[wgtypes.Key]*wgtypes.Peer{}
	active := t.schedule.active(t.now())
	for i := range t.slots {
		if t.slots[i].index == 0 {
			continue
		}
		s.Devices = append(s.Devices, DeviceStatus{
			Name: t.names[i], PublicKey: t.slots[i].private.PublicKey().String(), Port: t.port(i), Made: t.slots[i].made, Active: i == active,
		})
		if d, err := t.dev.Device(t.names[i]); err == nil {
			for j := range d.Peers {
				kernel[d.Peers[j].PublicKey] = &d.Peers[j]
			}
		}
	}
	for _, node := range slices.Sorted(maps.Keys(t.ways)) {
		s.Peers = append(s.Peers, t.peerStatus(node, kernel))
	}
	return s
}

func (t *Tunnels) peerStatus(node string, kernel map[wgtypes.Key]*wgtypes.Peer) PeerStatus {
	p := PeerStatus{Node: node, Way: Plain}
	way := t.ways[node]
	if way.Err != nil {
		p.Way, p.Problem = Blocked, way.Err.Error()
	} else if err := t.plan.errs[node]; err != nil {
		p.Problem = err.Error()
	}
	keys, ok := t.plan.keys[node]
	if !ok {
		return p
	}
	for i, e := range keys {
		k := kernel[e.key]
		if k == nil {
			continue
		}
		p.Received, p.Sent = p.Received+k.ReceiveBytes, p.Sent+k.TransmitBytes
		if k.LastHandshakeTime.Unix() > 0 && k.LastHandshakeTime.After(p.LastHandshake) {
			p.LastHandshake = k.LastHandshakeTime
		}
		if way.Link != 0 && way.Link == t.slots[i].index {
			p.Way, p.Device = Encrypted, t.names[i]
			if k.Endpoint != nil {
				p.Endpoint = k.Endpoint.String()
			}
		}
	}
	if p.LastHandshake.IsZero() && p.Problem == "" {
		p.Problem = "no answer yet; is UDP open on both of its ports?"
	}
	return p
}

// Unencrypted are the nodes whose pods are not reached because they have no tunnel, with
// Required; sorted.
func (t *Tunnels) Unencrypted() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []string
	for node, way := range t.ways {
		if way.Err != nil {
			out = append(out, node)
		}
	}
	slices.Sort(out)
	return out
}

var (
	metricPeers     = prometheus.NewDesc("vk_metal_wireguard_peers", "Other nodes, by how their pods are reached", []string{"way"}, nil)
	metricHandshake = prometheus.NewDesc("vk_metal_wireguard_last_handshake_seconds", "Unix time of the last handshake with a node", []string{"node"}, nil)
	metricReceived  = prometheus.NewDesc("vk_metal_wireguard_received_bytes", "Bytes received from a node since its key or ours is known", []string{"node"}, nil)
	metricSent      = prometheus.NewDesc("vk_metal_wireguard_sent_bytes", "Bytes sent to a node since its key or ours is known", []string{"node"}, nil)
	metricMade      = prometheus.NewDesc("vk_metal_wireguard_key_made_seconds", "Unix time when the key of a device was made", []string{"device"}, nil)
	metricFailed    = prometheus.NewDesc("vk_metal_wireguard_failed", "1 while something wanted could not be done", nil, nil)
)

// Describe implements prometheus.Collector.
func (t *Tunnels) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{metricPeers, metricHandshake, metricReceived, metricSent, metricMade, metricFailed} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (t *Tunnels) Collect(ch chan<- prometheus.Metric) {
	s := t.Status()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := map[string]int{Encrypted: 0, Plain: 0, Blocked: 0}
	for _, p := range s.Peers {
		count[p.Way]++
		if p.LastHandshake.IsZero() {
			continue
		}
		gauge(metricHandshake, float64(p.LastHandshake.Unix()), p.Node)
		gauge(metricReceived, float64(p.Received), p.Node)
		gauge(metricSent, float64(p.Sent), p.Node)
	}
	for way, n := range count {
		gauge(metricPeers, float64(n), way)
	}
	for _, d := range s.Devices {
		gauge(metricMade, float64(d.Made.Unix()), d.Name)
	}
	failed := 0.0
	if s.Error != "" {
		failed = 1
	}
	gauge(metricFailed, failed)
}
