package bench

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// proxyOn is one service proxy and the node where it works.
type proxyOn struct {
	name    string
	unit    string
	table   string // in families ip and ip6
	node    *rig.Machine
	netns   string
	metrics func() (string, error)
	// sum and count of these say how long programming took: all, and what changed.
	full, change string
	gaveUp       bool // with fewer Services
}

// proxyOn has the proxy on the node.
func (s *services) proxyOn(node string, proxy cluster.ServiceProxy) *proxyOn {
	s.Helper()
	if err := s.c.SetServiceProxy(s.ctx, node, proxy); err != nil {
		s.Fatal(err)
	}
	p := &proxyOn{name: string(proxy)}
	var err error
	if p.node, err = s.c.Rig.Machine(node); err != nil {
		s.Fatal(err)
	}
	leader, err := p.node.Leader(s.ctx)
	if err != nil {
		s.Fatal(err)
	}
	p.netns = fmt.Sprintf("/proc/%d/ns/net", leader)
	switch proxy {
	case cluster.ServiceProxyVKMetal:
		p.unit, p.table = "vk-metal.service", "vk-metal-services"
		p.full, p.change = `vk_metal_services_sync_duration_seconds_%s{kind="full"}`, `vk_metal_services_sync_duration_seconds_%s{kind="change"}`
		p.metrics = func() (string, error) {
			out, err := s.client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", node, "proxy/metrics").DoRaw(s.ctx)
			return string(out), err
		}
		return p
	case cluster.ServiceProxyKube:
		p.name += " " + artifacts.KubernetesVersion
	case cluster.ServiceProxyNewKube:
		p.name = "kube-proxy " + artifacts.NewKubeProxyVersion
	default:
		s.Fatalf("VK_METAL_BENCH_PROXIES: no service proxy %q", proxy)
	}
	p.unit, p.table = "kube-proxy.service", "kube-proxy"
	p.full, p.change = `kubeproxy_sync_full_proxy_rules_duration_seconds_%s{ip_family="IPv4"}`, `kubeproxy_sync_partial_proxy_rules_duration_seconds_%s{ip_family="IPv4"}`
	p.metrics = func() (string, error) { return get(s.ctx, p.netns, "http://127.0.0.1:10249/metrics") }
	return p
}

// stopAll leaves no proxy at work, nor the agent beside a kube-proxy: each would have its part of
// the processors.
func (s *services) stopAll() {
	s.Helper()
	for _, p := range s.proxies {
		s.run(p, "systemctl", "stop", "vk-metal.service", p.unit)
	}
}

// forget takes a stopped proxy's tables away, so that each begins with nothing. (kube-proxy
// 1.35.4 must: started over its own rules it does not fill again the chain of an endpoint that
// went and came back.)
func (s *services) forget(p *proxyOn) {
	s.Helper()
	err := within(p.netns, func() error {
		for _, family := range []string{"ip", "ip6"} {
			if out, err := exec.CommandContext(s.ctx, "nft", "add table "+family+" "+p.table+"; delete table "+family+" "+p.table).CombinedOutput(); err != nil {
				return fmt.Errorf("nft: %w\n%s", err, out)
			}
		}
		return nil
	})
	if err != nil {
		s.Fatal(err)
	}
}

// processor is the processor time that the proxy's process and its children have had, also those
// that run yet: kube-proxy has nft do the work.
func (s *services) processor(p *proxyOn) (used time.Duration) {
	s.Helper()
	out := s.run(p, "sh", "-c", "systemctl show --property=MainPID --value "+p.unit+"; cat /proc/[0-9]*/stat 2>/dev/null || :")
	first, rest, _ := strings.Cut(out, "\n")
	leader, err := strconv.Atoi(first)
	if err != nil || leader == 0 {
		s.Fatalf("%s does not run: main process %q, %v", p.name, first, err)
	}
	all := map[int]process{}
	for line := range strings.Lines(rest) {
		process, err := parseStat(line)
		if err != nil {
			s.Fatal(err)
		}
		all[process.pid] = process
	}
	for pid, process := range all {
		if below(all, pid, leader) {
			used += process.own + process.children
		}
	}
	return used
}

// memoryScript prints what the process has resident, and what its control group has: of version
// 1 as of version 2.
const memoryScript = `pid=$(systemctl show --property=MainPID --value "$1")
grep -E '^(VmHWM|VmRSS|RssAnon)' /proc/$pid/status
v1=/sys/fs/cgroup/memory$(sed -n 's/^[0-9]*:memory://p' /proc/$pid/cgroup) v2=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$pid/cgroup)
if [ -e "$v1/memory.usage_in_bytes" ]; then
	echo "group: $(cat "$v1/memory.usage_in_bytes")" "peak: $(cat "$v1/memory.max_usage_in_bytes")" "kernel: $(cat "$v1/memory.kmem.usage_in_bytes")" "$(sed -n 's/^total_cache /file: /p' "$v1/memory.stat")"
elif [ -e "$v2/memory.current" ]; then
	echo "group: $(cat "$v2/memory.current")" "peak: $(cat "$v2/memory.peak" 2>/dev/null || echo 0)" "$(sed -n 's/^kernel /kernel: /p; s/^file /file: /p' "$v2/memory.stat" | paste -s -d ' ')"
fi | tr -s ' ' '\n' | paste -d ' ' - -`

// memory is what the proxy's process has resident, now and at most, and its control group, with
// the kernel's memory and the file cache that are counted there.
func (s *services) memory(p *proxyOn) string {
	s.Helper()
	found := map[string]int{}
	for line := range strings.Lines(s.run(p, "sh", "-c", memoryScript, "memory", p.unit)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			s.Fatalf("memory of %s: %v", p.name, err)
		}
		if len(fields) == 3 { // kB, as /proc says
			n *= 1024
		}
		found[strings.TrimSuffix(fields[0], ":")] = n >> 20
	}
	return fmt.Sprintf("%d MiB (anonymous %d, at most %d), control group %d MiB (kernel %d, files %d, at most %d)",
		found["VmRSS"], found["RssAnon"], found["VmHWM"], found["group"], found["kernel"], found["file"], found["peak"])
}

// resetPeak has the peak of what is resident begin anew (proc_pid_clear_refs(5)).
func (s *services) resetPeak(p *proxyOn) {
	s.Helper()
	s.run(p, "sh", "-c", "echo 5 >/proc/$(systemctl show --property=MainPID --value "+p.unit+")/clear_refs")
}

func (s *services) run(p *proxyOn, argv ...string) string {
	s.Helper()
	out, err := p.node.Run(s.ctx, argv...)
	if err != nil {
		s.Fatal(err)
	}
	return out
}

// total is a histogram's sum, in seconds, and count.
func (s *services) total(p *proxyOn, name string) (sum, count float64) {
	s.Helper()
	text, err := p.metrics()
	if err != nil {
		s.Fatalf("read the metrics of %s: %v", p.name, err)
	}
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		for suffix, value := range map[string]*float64{"sum": &sum, "count": &count} {
			if rest, ok := strings.CutPrefix(lines.Text(), fmt.Sprintf(name, suffix)+" "); ok {
				*value, _ = strconv.ParseFloat(strings.TrimSpace(rest), 64)
			}
		}
	}
	return sum, count
}

// read is a histogram's mean, in seconds, once it has one: what is programmed works a moment
// before it is counted.
func (s *services) read(p *proxyOn, name string) (mean float64) {
	s.Helper()
	for end := time.Now().Add(s.bound); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		if sum, count := s.total(p, name); count > 0 {
			return sum / count
		}
	}
	s.Fatalf("%s tells nothing of %s", p.name, name)
	return 0
}

// get reads a page inside a network namespace.
func get(ctx context.Context, path, url string) (page string, err error) {
	dial := func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = within(path, func() (err error) {
			conn, err = (&net.Dialer{FallbackDelay: -1}).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return "", err
	}
	client := http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
	response, err := client.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	out, err := io.ReadAll(response.Body)
	return string(out), err
}
