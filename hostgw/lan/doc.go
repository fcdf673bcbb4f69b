// Package lan announces Services' addresses on the node's links by ARP and NDP, so that a
// flat LAN needs no router that speaks BGP. Which node announces an address is a function
// of what all nodes know (Plan): there is no election. It owns nothing in the kernel but
// its sockets: with the agent gone, nobody answers, and another node takes over.
package lan
