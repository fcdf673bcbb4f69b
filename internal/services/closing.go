package services

import (
	"maps"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// A connection that an endpoint resets stays in the connection tracking, translation and
// all, for ten seconds (nf_conntrack_tcp_timeout_close). The client's port is free at once:
// a new connection from it would go the old way, to an endpoint that may be gone. So the
// connections to Services are forgotten as soon as they are reset.

// closingName of the object that says so.
const closingName = "closing"

// tcpStates are the kernel's names of the states that have a time-out.
var tcpStates = map[uint16]string{
	expr.CtStateTCPSYNSENT: "syn_sent", expr.CtStateTCPSYNRECV: "syn_recv", expr.CtStateTCPESTABLISHED: "established",
	expr.CtStateTCPFINWAIT: "fin_wait", expr.CtStateTCPCLOSEWAIT: "close_wait", expr.CtStateTCPLASTACK: "last_ack",
	expr.CtStateTCPTIMEWAIT: "time_wait", expr.CtStateTCPRETRANS: "max_retrans", expr.CtStateTCPUNACK: "unacknowledged",
}

// closing is the namespace's time-outs, in seconds, but none for what was reset; nil where
// the kernel does not have them per connection.
func (t *table) closing() expr.CtStatePolicyTimeout {
	if t.lingers {
		return nil
	}
	policy := maps.Clone(expr.CtStateTCPTimeoutDefaults)
	_ = t.ns.Do(func() error {
		for state, name := range tcpStates {
			if seconds, err := tcpTimeout(name); err == nil {
				policy[state] = seconds
			}
		}
		return nil
	})
	policy[expr.CtStateTCPSYNSENT2] = policy[expr.CtStateTCPSYNSENT]
	policy[expr.CtStateTCPCLOSE] = 0
	return policy
}

// tcpTimeout reads a time-out of the thread's network namespace.
func tcpTimeout(name string) (uint32, error) {
	text, err := linuxns.GetSysctl("net.netfilter.nf_conntrack_tcp_timeout_" + name)
	if err != nil {
		return 0, err
	}
	seconds, err := strconv.ParseUint(text, 10, 32)
	return uint32(seconds), err
}

// setClosing gives new connections these time-outs; nil: the kernel's.
func (f *family) setClosing(policy expr.CtStatePolicyTimeout) {
	if f.closing = nil; policy == nil {
		return
	}
	l3 := uint16(unix.NFPROTO_IPV4)
	if f.ipv6 {
		l3 = unix.NFPROTO_IPV6
	}
	f.closing = &nftables.NamedObj{
		Table: f.table, Name: closingName, Type: nftables.ObjTypeCtTimeout,
		Obj: &expr.CtTimeout{L3Proto: l3, L4Proto: unix.IPPROTO_TCP, Policy: policy},
	}
}
