// Package bgp speaks BGP for one node: it tells peers the node's podCIDRs and the
// addresses of Services, and installs what they tell into the kernel. Plan decides
// without effects what the node's BGP should be; a Speaker makes GoBGP so and owns the
// kernel's routes with RouteProtocol. It knows Nodes and Services as plain values.
package bgp
