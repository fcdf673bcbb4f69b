package bench

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"time"
)

const (
	// One endpoint changes until changeSpan is over, this often at least and at most.
	minChanges, maxChanges = 3, 100
	changeSpan             = 10 * time.Second
	// changeTime bounds how long a proxy may take for one change.
	changeTime = 2 * time.Minute
	// connections for the latency.
	connections = 500
	// precision of what is waited for, and the least time between two looks: looking costs
	// processor time that the proxy wants.
	precision = 0.02
	leastLook = 200 * time.Microsecond
)

// measure prints one proxy's figures with n Services, and stops it.
func (s *services) measure(p *proxyOn, n int) {
	s.Helper()
	if p.gaveUp {
		s.Logf("%s, %d Services: left out", p.name, n)
		return
	}
	s.move()
	s.forget(p)
	defer s.run(p, "systemctl", "stop", p.unit)
	begin := time.Now()
	s.run(p, "systemctl", "start", p.unit)
	if !s.until(p, s.bound) {
		p.gaveUp = true
		s.Logf("%s, %d Services: not within %s, %.1f s of processor time", p.name, n, s.bound, s.processor(p).Seconds())
		return
	}
	started, full := time.Since(begin), s.read(p, p.full)
	s.Logf("%s, %d Services: start to first connection %.2f s, to program all %.3f s of that, processor time of both %.2f s",
		p.name, n, started.Seconds(), full, s.processor(p).Seconds())
	s.Logf("%s, %d Services: resident after that %s", p.name, n, s.memory(p))
	s.resetPeak(p)
	s.Logf("%s, %d Services: one endpoint changes: %s", p.name, n, s.changes(p))
	s.Logf("%s, %d Services: connections %s", p.name, n, s.latency(p))
	s.Logf("%s, %d Services: resident then, and at most since all was programmed %s", p.name, n, s.memory(p))
	s.heap(p, n)
}

// changes moves the canary and says what that takes.
func (s *services) changes(p *proxyOn) string {
	s.Helper()
	sumBefore, before := s.total(p, p.change)
	used, all := s.processor(p), time.Now()
	var seen Times
	for len(seen) < minChanges || len(seen) < maxChanges && time.Since(all) < changeSpan {
		s.move()
		begin := time.Now()
		if !s.until(p, changeTime) {
			return fmt.Sprintf("not within %s after %d", changeTime, len(seen))
		}
		seen = append(seen, time.Since(begin))
	}
	used = s.processor(p) - used
	each := "none counted"
	if sum, after := s.total(p, p.change); after > before {
		each = ms(time.Duration((sum-sumBefore)/(after-before)*float64(time.Second))) + " ms"
	}
	return fmt.Sprintf("programmed in %s, processor time %s ms each of %d, from the API's answer to the first connection %s",
		each, ms(used/time.Duration(len(seen))), len(seen), seen)
}

// until waits until the node's proxy leads to the server that is the canary's endpoint now;
// false if it does not within the bound. On the way it says what the proxy has used.
func (s *services) until(p *proxyOn, bound time.Duration) bool {
	s.Helper()
	begin := time.Now()
	told, passed, last := begin, time.Duration(0), error(nil)
	for ; passed < bound; passed = time.Since(begin) {
		pause := max(leastLook, time.Duration(float64(passed)*precision))
		answer, err := s.asks(p, max(50*time.Millisecond, pause))
		if s.ctx.Err() != nil {
			s.Fatalf("%s does not serve the canary in the time that there is: %v", p.name, err)
		}
		if answer == strconv.Itoa(s.now) {
			return true
		}
		last = err
		if time.Since(told) > progressTime {
			told = time.Now()
			s.Logf("%s does not serve the canary after %.0f s, %.1f s of processor time, resident %s", p.name, passed.Seconds(), s.processor(p).Seconds(), s.memory(p))
		}
		time.Sleep(min(pause, time.Second))
	}
	s.Logf("%s did not serve the canary within %s: %v", p.name, bound, last)
	return false
}

func (s *services) address() string { return net.JoinHostPort(s.canary.Spec.ClusterIP, "80") }

// asks connects to the canary from a node's own network and reads who answers.
func (s *services) asks(p *proxyOn, patience time.Duration) (answer string, err error) {
	err = within(p.netns, func() error {
		conn, err := (&net.Dialer{Timeout: patience, FallbackDelay: -1}).DialContext(s.ctx, "tcp4", s.address())
		if err != nil {
			return err
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		out, err := io.ReadAll(conn)
		answer = string(out)
		return err
	})
	return answer, err
}

// latency compares connections by the Service with connections to the endpoint itself, and
// counts those that did not come about.
func (s *services) latency(p *proxyOn) string {
	s.Helper()
	var direct, service Times
	failed := 0
	err := within(p.netns, func() error {
		for range connections {
			for _, c := range []struct {
				to    string
				times *Times
			}{{s.servers[s.now].String(), &direct}, {s.address(), &service}} {
				begin := time.Now()
				conn, err := (&net.Dialer{Timeout: 5 * time.Second, FallbackDelay: -1}).DialContext(s.ctx, "tcp4", c.to)
				if s.ctx.Err() != nil {
					return err
				}
				if err != nil {
					failed++
					continue
				}
				*c.times = append(*c.times, time.Since(begin))
				_ = conn.Close()
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
	said := fmt.Sprintf("p50 %d µs, %.2f of direct", service.At(0.5).Microseconds(), float64(service.At(0.5))/float64(direct.At(0.5)))
	if failed > 0 {
		said += fmt.Sprintf(" (%d failed)", failed)
	}
	return said
}

// heap writes the agent's heap beside VK_METAL_BENCH_PROFILE, for go tool pprof.
func (s *services) heap(p *proxyOn, n int) {
	s.Helper()
	file := os.Getenv("VK_METAL_BENCH_PROFILE")
	if file == "" || p.unit != "vk-metal.service" {
		return
	}
	data, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", p.node.Name, "proxy/debug/pprof/heap").DoRaw(s.ctx)
	if err == nil {
		err = os.WriteFile(fmt.Sprintf("%s.%d", file, n), data, 0o600)
	}
	if err != nil {
		s.Errorf("profile the agent: %v", err)
	}
}
