package node

import (
	"fmt"
)

// Topology counts the server's cores and sockets. CPUs that do not tell theirs are a core each,
// in one socket.
func (h Host) Topology() (cores, sockets int) {
	type core struct{ socket, id string }
	seen, packages := map[core]bool{}, map[string]bool{}
	for cpu := range h.CPUs() {
		dir := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/", cpu)
		socket, id := h.read(dir+"physical_package_id"), h.read(dir+"core_id")
		if id == "" {
			id = fmt.Sprintf("cpu%d", cpu)
		}
		seen[core{socket, id}], packages[socket] = true, true
	}
	return len(seen), len(packages)
}
