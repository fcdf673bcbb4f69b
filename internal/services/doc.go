// Package services is the node's service proxy: it turns Services and EndpointSlices into
// nftables maps, so that connections to a Service's addresses reach its endpoints.
//
// The pipeline: resolve (pure: Service, slices, node → Ports) → render (Ports → elements of
// sets and maps) → table (one netlink transaction per change). It owns the tables
// vk-metal-services of the families ip and ip6 and touches nothing else. It knows pods only by
// the link group of their interfaces, and must not know how pods are run.
package services
