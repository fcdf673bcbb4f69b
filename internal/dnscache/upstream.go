package dnscache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

const (
	attemptTimeout = 2 * time.Second
	idleConns      = 8
	// idleFor is less than what servers keep idle connections (CoreDNS: 10 s).
	idleFor = 8 * time.Second
)

// upstream asks one server by TCP: no answer is cut off, and a lost packet costs a
// retransmission instead of a client's time-out. Where TCP fails, by UDP.
type upstream struct {
	ns      *linuxns.NS
	address string

	mu   sync.Mutex
	idle []idleConn
}

type idleConn struct {
	*dns.Conn
	since time.Time
}

// ask returns the server's answer to a query.
func (u *upstream) ask(ctx context.Context, query *dns.Msg) (*dns.Msg, error) {
	q := query.Copy()
	q.Id = dns.Id()
	if c := u.take(); c != nil {
		if answer, err := u.exchange(ctx, c, q); err == nil {
			return answer, nil
		} // the server may have closed it
	}
	var errs []error
	for _, network := range []string{"tcp", "udp"} {
		c, err := u.dial(ctx, network)
		if err == nil {
			var answer *dns.Msg
			if answer, err = u.exchange(ctx, c, q); err == nil {
				return answer, nil
			}
		}
		errs = append(errs, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, fmt.Errorf("ask %s: %w", u.address, errors.Join(errs...))
}

func (u *upstream) dial(ctx context.Context, network string) (c *dns.Conn, err error) {
	err = u.ns.Do(func() error {
		d := net.Dialer{Timeout: attemptTimeout}
		raw, err := d.DialContext(ctx, network, u.address)
		c = &dns.Conn{Conn: raw, UDPSize: dns.DefaultMsgSize}
		return err
	})
	return c, err
}

// exchange uses up the connection, or puts it back for the next.
func (u *upstream) exchange(ctx context.Context, c *dns.Conn, q *dns.Msg) (*dns.Msg, error) {
	end := time.Now().Add(attemptTimeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	_ = c.SetDeadline(end)
	answer, err := roundTrip(c, q)
	if _, tcp := c.Conn.(*net.TCPConn); err != nil || !tcp {
		_ = c.Close()
		return answer, err
	}
	u.put(c)
	return answer, nil
}

func roundTrip(c *dns.Conn, q *dns.Msg) (*dns.Msg, error) {
	if err := c.WriteMsg(q); err != nil {
		return nil, err
	}
	for {
		answer, err := c.ReadMsg()
		if err != nil {
			return nil, err
		}
		if answer.Id == q.Id && answer.Response && len(answer.Question) == 1 && answer.Question[0] == q.Question[0] {
			return answer, nil
		}
	}
}

func (u *upstream) take() *dns.Conn {
	u.mu.Lock()
	defer u.mu.Unlock()
	for len(u.idle) > 0 {
		last := u.idle[len(u.idle)-1]
		u.idle = u.idle[:len(u.idle)-1]
		if time.Since(last.since) < idleFor {
			return last.Conn
		}
		_ = last.Close()
	}
	return nil
}

func (u *upstream) put(c *dns.Conn) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if len(u.idle) == idleConns {
		_ = c.Close()
		return
	}
	u.idle = append(u.idle, idleConn{c, time.Now()})
}

func (u *upstream) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, c := range u.idle {
		_ = c.Close()
	}
	u.idle = nil
}
