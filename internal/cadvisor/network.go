package cadvisor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/prometheus/procfs"
)

// Link is an interface with its counters; Received and Sent are seen from inside.
type Link struct {
	Name           string
	Received, Sent Traffic
}

// Traffic counts bytes, packets, errors and packets that were dropped.
type Traffic struct{ Bytes, Packets, Errors, Dropped uint64 }

// ignoredLinks are prefixes of interfaces that cAdvisor does not count (manager/container.go
// and container/libcontainer/handler.go); ours to pods begin with "vkm".
var ignoredLinks = []string{"lo", "veth", "docker", "vkm"}

// Links reads the interfaces of the network that a process is in, all but the ignored ones.
// Errors name the process.
func Links(pid int) ([]Link, error) {
	proc, err := procfs.NewProc(pid)
	if err != nil {
		return nil, fmt.Errorf("read the network of process %d: %w", pid, err)
	}
	devices, err := proc.NetDev()
	if err != nil {
		return nil, fmt.Errorf("read the network of process %d: %w", pid, err)
	}
	var links []Link
	for name, d := range devices {
		if slices.ContainsFunc(ignoredLinks, func(prefix string) bool { return strings.HasPrefix(name, prefix) }) {
			continue
		}
		links = append(links, Link{
			Name:     name,
			Received: Traffic{Bytes: d.RxBytes, Packets: d.RxPackets, Errors: d.RxErrors, Dropped: d.RxDropped},
			Sent:     Traffic{Bytes: d.TxBytes, Packets: d.TxPackets, Errors: d.TxErrors, Dropped: d.TxDropped},
		})
	}
	slices.SortFunc(links, func(a, b Link) int { return cmp.Compare(a.Name, b.Name) })
	return links, nil
}
