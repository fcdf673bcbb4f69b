package dnscache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sync/singleflight"
	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// Options of a Cache.
type Options struct {
	// HostNetNS is the path of the network namespace to work in; empty is the process's.
	HostNetNS string
	// Servers are the addresses that pods ask: the cluster's DNS Service.
	Servers []netip.Addr
	// PodLinkGroup is the link group of pods' interfaces.
	PodLinkGroup uint32
	// Entries are how many answers are kept; 10,000 when 0.
	Entries int
	// Log is slog.Default() when nil.
	Log *slog.Logger
}

// Cache answers pods. It is safe for concurrent use.
type Cache struct {
	o       Options
	log     *slog.Logger
	ns      *linuxns.NS
	door    *door
	cache   *cache
	servers map[netip.Addr]*upstream
	flights singleflight.Group
	stats   *stats
	busy    chan struct{} // one for each query in work
}

// maxBusy bounds the queries in work; what comes then is refused, and clients ask anew.
const maxBusy = 2000

// answerWithin is how long a client waits at most; resolvers give up after 5 s.
const answerWithin = 4 * time.Second

// New opens the namespace; nothing is answered before Run.
func New(o Options) (*Cache, error) {
	c := &Cache{o: o, log: o.Log, servers: map[netip.Addr]*upstream{}, busy: make(chan struct{}, maxBusy)}
	if c.log == nil {
		c.log = slog.Default()
	}
	if o.Entries == 0 {
		o.Entries = 10000
	}
	c.cache = newCache(o.Entries)
	c.stats = newStats(c.cache)
	var err error
	if c.ns, err = linuxns.Open(o.HostNetNS); err != nil {
		return nil, err
	}
	c.door = newDoor(c.ns, o.Servers, o.PodLinkGroup)
	for _, a := range o.Servers {
		c.servers[a] = &upstream{ns: c.ns, address: netip.AddrPortFrom(a, 53).String()}
	}
	return c, nil
}

// SetDirect says which pods are to ask the cluster's DNS themselves: those whose egress a
// network policy restricts, as it judges what they send there. It takes effect before it
// returns.
func (c *Cache) SetDirect(pods []netip.Addr) error { return c.door.setDirect(pods) }

// Run answers until ctx ends; then queries go their usual way.
func (c *Cache) Run(ctx context.Context) error {
	defer func() {
		for _, u := range c.servers {
			u.close()
		}
		_ = c.ns.Close()
	}()
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	failed := make(chan error, 2*len(c.servers)+1)
	for a := range c.servers {
		servers, err := c.listen(a)
		if err != nil {
			return err
		}
		for _, s := range servers {
			running.Go(func() { failed <- s.ActivateAndServe() })
			running.Go(func() {
				<-ctx.Done()
				_ = closeServer(s)
			})
		}
	}
	running.Go(func() { failed <- c.door.keep(ctx, c.log) })
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("answer DNS queries: %w", err)
	}
}

// closeServer ends a server at once: that a reply is lost costs its client a question.
func closeServer(s *dns.Server) error {
	if s.Listener != nil {
		return s.Listener.Close()
	}
	return s.PacketConn.Close()
}

// listen opens transparent sockets on an address that is not the host's: only what the
// rules hand over arrives there, and replies bear the address that was asked.
func (c *Cache) listen(a netip.Addr) (servers []*dns.Server, err error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if e := raw.Control(func(fd uintptr) { err = transparent(int(fd), a.Is6()) }); e != nil {
			return e
		}
		return err
	}}
	at := net.JoinHostPort(a.String(), strconv.Itoa(53))
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, m *dns.Msg) { c.serve(a, w, m) })
	err = c.ns.Do(func() error {
		pc, err := config.ListenPacket(context.Background(), "udp", at)
		if err != nil {
			return err
		}
		l, err := config.Listen(context.Background(), "tcp", at)
		if err != nil {
			_ = pc.Close()
			return err
		}
		servers = []*dns.Server{
			{PacketConn: pc, Handler: handler, UDPSize: dns.DefaultMsgSize},
			{Listener: l, Handler: handler},
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listen for DNS queries to %s: %w", a, err)
	}
	return servers, nil
}

func transparent(fd int, ipv6 bool) error {
	if ipv6 {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_TRANSPARENT, 1)
}

// serve answers one query that was sent to the server a.
func (c *Cache) serve(a netip.Addr, w dns.ResponseWriter, m *dns.Msg) {
	select {
	case c.busy <- struct{}{}:
		defer func() { <-c.busy }()
	default:
		c.stats.count("refused")
		_ = w.WriteMsg(new(dns.Msg).SetRcode(m, dns.RcodeServerFailure))
		return
	}
	answer := c.answer(a, m)
	if _, udp := w.RemoteAddr().(*net.UDPAddr); udp {
		size := dns.MinMsgSize
		if opt := m.IsEdns0(); opt != nil {
			size = max(size, int(opt.UDPSize()))
		}
		answer.Truncate(size)
	}
	_ = w.WriteMsg(answer)
}

// answer finds the answer: in the cache, from the server, or in the cache past its time.
func (c *Cache) answer(a netip.Addr, m *dns.Msg) *dns.Msg {
	if m.Opcode != dns.OpcodeQuery || len(m.Question) != 1 {
		return new(dns.Msg).SetRcode(m, dns.RcodeNotImplemented)
	}
	k := keyOf(m, a.String())
	kept, fresh := c.cache.get(k, time.Now())
	if fresh {
		c.stats.count("hit")
		return reply(m, kept)
	}
	ctx, cancel := context.WithTimeout(context.Background(), answerWithin)
	defer cancel()
	if kept != nil { // the client shall have the old answer before it gives up (RFC 8767, 5)
		var quick context.CancelFunc
		ctx, quick = context.WithTimeout(ctx, attemptTimeout)
		defer quick()
	}
	got, err := c.ask(ctx, a, k, m)
	switch {
	case err == nil && (got.Rcode != dns.RcodeServerFailure || kept == nil):
		c.stats.count("miss")
		return reply(m, got)
	case kept != nil:
		c.stats.count("stale")
		return reply(m, kept)
	}
	c.stats.count("failed")
	c.log.Debug("cannot answer a DNS query", "name", k.name, "error", err)
	return reply(m, new(dns.Msg).SetRcode(m, dns.RcodeServerFailure))
}

// ask asks the server; those who ask the same at the same time share the answer.
func (c *Cache) ask(ctx context.Context, a netip.Addr, k key, m *dns.Msg) (*dns.Msg, error) {
	shared := c.flights.DoChan(fmt.Sprint(k), func() (any, error) {
		inner, cancel := context.WithTimeout(context.Background(), answerWithin)
		defer cancel()
		q := new(dns.Msg).SetQuestion(m.Question[0].Name, k.kind)
		q.Question[0].Qclass, q.CheckingDisabled = k.class, k.cd
		q.RecursionDesired = m.RecursionDesired
		q.SetEdns0(dns.DefaultMsgSize, k.do)
		begin := time.Now()
		got, err := c.servers[a].ask(inner, q)
		if err != nil {
			return nil, err
		}
		c.stats.took.Observe(time.Since(begin).Seconds())
		c.cache.put(k, got, time.Now())
		return got, nil
	})
	select {
	case r := <-shared:
		if r.Err != nil {
			return nil, r.Err
		}
		got, ok := r.Val.(*dns.Msg)
		if !ok {
			return nil, errors.New("no answer")
		}
		return got.Copy(), nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// reply makes what was found the answer to this query.
func reply(m, found *dns.Msg) *dns.Msg {
	found.Id, found.Question, found.Response = m.Id, m.Question, true
	found.RecursionDesired = m.RecursionDesired
	found.Extra = withoutOPT(found.Extra)
	if opt := m.IsEdns0(); opt != nil {
		found.SetEdns0(dns.DefaultMsgSize, opt.Do())
	}
	return found
}
