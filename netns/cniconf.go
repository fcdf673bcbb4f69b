package netns

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// loadList is the first network list of the directory, by file name, that can be read, as
// with other runtimes; the error names what is wrong with the others when none can.
func loadList(dir string) (*libcni.NetworkConfigList, error) {
	files, err := libcni.ConfFiles(dir, []string{".conflist", ".conf", ".json"})
	if err != nil {
		return nil, fmt.Errorf("read network lists: %w", err)
	}
	var errs []error
	for _, file := range files { // sorted
		list, err := readList(file)
		if err == nil {
			return list, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", file, err))
	}
	if len(errs) == 0 {
		return nil, fmt.Errorf("no network list in %s: the network plugin is not installed yet", dir)
	}
	return nil, errors.Join(errs...)
}

// readList also takes a file with a single plugin, the form of before lists.
func readList(file string) (*libcni.NetworkConfigList, error) {
	if filepath.Ext(file) == ".conflist" {
		return libcni.NetworkConfFromFile(file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var plugin struct {
		Name       string `json:"name"`
		CNIVersion string `json:"cniVersion"`
		Type       string `json:"type"`
	}
	if err := json.Unmarshal(data, &plugin); err != nil {
		return nil, err
	}
	if plugin.Type == "" { // a list under another name
		return libcni.NetworkConfFromFile(file)
	}
	list, err := json.Marshal(map[string]any{"name": plugin.Name, "cniVersion": plugin.CNIVersion, "plugins": []json.RawMessage{data}})
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(list)
}

// listOf is the list that an attachment was made with. One whose plugins are in files of
// their own is only known as it is now.
func (c *CNI) listOf(at *libcni.NetworkAttachment) (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(at.Config)
	if err != nil || len(list.Plugins) > 0 {
		return list, err
	}
	if now := c.current(); now != nil && now.Name == at.Network {
		return now, nil
	}
	return nil, errors.New("its plugins are not known any more")
}

// runtimeConf is what plugins are told of a pod.
func runtimeConf(list *libcni.NetworkConfigList, pod PodNetwork, path string) (*libcni.RuntimeConf, error) {
	capabilities := map[string]any{}
	if len(pod.HostPorts) > 0 {
		capabilities["portMappings"] = portMappings(pod.HostPorts)
	}
	if pod.Bandwidth != (Bandwidth{}) {
		capabilities["bandwidth"] = bandwidthLimits(pod.Bandwidth)
	}
	for name := range capabilities {
		if !capable(list, name) {
			return nil, fmt.Errorf("no plugin of network %s has the capability %s, which the pod needs", list.Name, name)
		}
	}
	return &libcni.RuntimeConf{
		ContainerID: pod.PodUID, NetNS: path, IfName: podLink, CapabilityArgs: capabilities,
		Args: [][2]string{
			{"IgnoreUnknown", "1"},
			{"K8S_POD_NAMESPACE", pod.Namespace},
			{"K8S_POD_NAME", pod.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", pod.PodUID},
			{"K8S_POD_UID", pod.PodUID},
		},
	}, nil
}

// runtimeConfOf is what plugins were told when the attachment was made; path is where the
// namespace is now, or empty.
func runtimeConfOf(at *libcni.NetworkAttachment, path string) *libcni.RuntimeConf {
	return &libcni.RuntimeConf{ContainerID: at.ContainerID, NetNS: path, IfName: at.IfName, Args: at.CniArgs, CapabilityArgs: at.CapabilityArgs}
}

func capable(list *libcni.NetworkConfigList, capability string) bool {
	for _, plugin := range list.Plugins {
		if plugin.Network.Capabilities[capability] {
			return true
		}
	}
	return false
}

// portMapping is one host port as the conventions of CNI have it.
type portMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	Protocol      string `json:"protocol"`
	HostIP        string `json:"hostIP,omitempty"`
}

func portMappings(ports []HostPort) []portMapping {
	out := make([]portMapping, 0, len(ports))
	for _, p := range ports {
		m := portMapping{p.HostPort, p.ContainerPort, strings.ToLower(p.Protocol), ""}
		if m.Protocol == "" {
			m.Protocol = "tcp"
		}
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			m.HostIP = p.HostIP.String()
		}
		out = append(out, m)
	}
	return out
}

// bandwidthLimits are bits per second; bursts are as large as plugins take them, as with
// other runtimes.
func bandwidthLimits(b Bandwidth) map[string]uint64 {
	out := map[string]uint64{}
	if b.Ingress > 0 {
		out["ingressRate"], out["ingressBurst"] = b.Ingress, math.MaxInt32
	}
	if b.Egress > 0 {
		out["egressRate"], out["egressBurst"] = b.Egress, math.MaxInt32
	}
	return out
}

// cachedAddresses are the addresses that ADD gave.
func (c *CNI) cachedAddresses(at *libcni.NetworkAttachment) ([]netip.Addr, error) {
	list, err := libcni.NetworkConfFromBytes(at.Config)
	if err != nil {
		return nil, err
	}
	result, err := c.lib.GetNetworkListCachedResult(list, runtimeConfOf(at, at.NetNS))
	if err != nil {
		return nil, err
	}
	return addresses(result)
}

// addresses are those that a result has inside of the pod.
func addresses(result types.Result) ([]netip.Addr, error) {
	if result == nil {
		return nil, errors.New("the plugins gave no result")
	}
	r, err := types100.NewResultFromResult(result)
	if err != nil {
		return nil, fmt.Errorf("understand the plugins' result: %w", err)
	}
	var out []netip.Addr
	for _, ip := range r.IPs {
		if i := ip.Interface; i != nil && *i >= 0 && *i < len(r.Interfaces) && r.Interfaces[*i].Sandbox == "" {
			continue // of the host's side
		}
		if a, ok := netip.AddrFromSlice(ip.Address.IP); ok {
			out = append(out, a.Unmap())
		}
	}
	if len(out) == 0 {
		return nil, errors.New("the plugins gave the pod no address")
	}
	return out, nil
}
