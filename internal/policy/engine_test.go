package policy

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	networkingv1 "k8s.io/api/networking/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/yaml"
)

var update = flag.Bool("update", false, "write the golden files")

const testNode = "node-a"

// pods and namespaces of the golden tests: web and db here, a client and a node's own pod elsewhere.
func goldenEngine(t *testing.T, policies string) *engine {
	t.Helper()
	e := newEngine(testNode)
	e.setNamespace("shop", map[string]string{"kubernetes.io/metadata.name": "shop", "team": "a"})
	e.setNamespace("ops", map[string]string{"kubernetes.io/metadata.name": "ops"})
	pod := func(namespace, name, node string, ips ...string) *Pod {
		p := &Pod{UID: name, Namespace: namespace, Name: name, Node: node, Labels: map[string]string{"app": name}}
		for _, ip := range ips {
			p.IPs = append(p.IPs, netip.MustParseAddr(ip))
		}
		e.setPod(name, p)
		return p
	}
	web := *pod("shop", "web", testNode, "10.0.1.1", "fd00::1:1")
	web.Ports = []NamedPort{{"http", 6, 8080}}
	e.setPod("web", &web)
	pod("shop", "db", testNode, "10.0.1.2")
	pod("ops", "client", "node-b", "10.0.2.1", "fd00::2:1")
	host := *pod("ops", "agent", "node-b", "192.0.2.2")
	host.HostNetwork = true
	e.setPod("agent", &host)
	done := *pod("ops", "job", "node-b", "10.0.2.9")
	done.Finished = true
	e.setPod("job", &done)
	for _, p := range parsePolicies(t, policies) {
		compiled, err := compile(p)
		if err != nil {
			t.Fatal(err)
		}
		e.setPolicy(compiled.Key, compiled)
	}
	return e
}

func parsePolicies(t testing.TB, text string) (out []*networkingv1.NetworkPolicy) {
	t.Helper()
	for _, doc := range strings.Split(text, "\n---\n") {
		p := &networkingv1.NetworkPolicy{}
		if err := yaml.UnmarshalStrict([]byte(doc), p); err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// TestGolden shows for each testdata/*.yaml what it becomes.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no policies", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			e := goldenEngine(t, string(text))
			e.take()
			got, golden := e.content.String(), strings.TrimSuffix(file, ".yaml")+".golden"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%swant\n%s", got, want)
			}
		})
	}
}

func TestCompileRefuses(t *testing.T) {
	for _, c := range []struct{ name, spec, want string }{
		{"selector", "{podSelector: {matchLabels: {a: 'not valid!'}}}", "spec.podSelector"},
		{"empty peer", "{podSelector: {}, ingress: [{from: [{}]}]}", "spec.ingress[0].from[0]"},
		{"block", "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0}}]}]}", "spec.egress[0].to[0]: ipBlock.cidr"},
		{"hole", "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [x]}}]}]}", "except[0]"},
		{"port", "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 70}]}]}", "spec.ingress[0].ports[0]"},
		{"protocol", "{podSelector: {}, ingress: [{ports: [{port: 80, protocol: ICMP}]}]}", "ICMP"},
	} {
		p := parsePolicies(t, "metadata: {name: p, namespace: ns}\nspec: "+c.spec)[0]
		compiled, err := compile(p)
		if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "ns/p") {
			t.Errorf("%s: %v, want an error with %q", c.name, err, c.want)
		}
		if compiled != nil && len(compiled.render().chains) > 0 {
			for _, rules := range compiled.render().chains {
				if len(rules) > 0 {
					t.Errorf("%s: what is not understood allows something: %v", c.name, rules)
				}
			}
		}
	}
}

func TestBlocks(t *testing.T) {
	p := netip.MustParsePrefix
	for _, c := range []struct {
		got  []span
		want string
	}{
		{block(p("10.0.0.0/8"), nil), "[10.0.0.0-10.255.255.255]"},
		{block(p("10.0.0.0/24"), []netip.Prefix{p("10.0.0.0/25"), p("10.0.0.255/32")}), "[10.0.0.128-10.0.0.254]"},
		{block(p("0.0.0.0/0"), []netip.Prefix{p("10.0.0.0/8"), p("10.1.0.0/16")}), "[0.0.0.0-9.255.255.255 11.0.0.0-255.255.255.255]"},
		{block(p("10.0.0.0/24"), []netip.Prefix{p("10.0.0.0/8")}), "[]"},
		{union(append(block(p("10.0.0.0/24"), nil), block(p("10.0.1.0/24"), nil)...)), "[10.0.0.0-10.0.1.255]"},
		{union(append(block(p("::/0"), nil), block(p("fd00::/8"), nil)...)), "[::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]"},
	} {
		if got := fmt.Sprint(c.got); got != c.want {
			t.Errorf("%s, want %s", got, c.want)
		}
	}
}

// mirror is a kernel: it takes changes and must end with the content.
type mirror struct {
	sets     map[Set]map[Element]bool
	chains   map[string][]Rule
	isolated map[target]string
}

// take applies a change with the kernel's strictness: nothing is added twice or taken away
// that is not there, and nothing goes that something else names.
func (m *mirror) take(t *rapid.T, d *changes) {
	for k, was := range d.elements {
		if m.sets[k.set][k.element] != was {
			t.Fatalf("element %v of %s: was %t", k.element, k.set.Name, !was)
		}
		if was {
			delete(m.sets[k.set], k.element)
		}
	}
	for s, was := range d.sets {
		if _, there := m.sets[s]; there != was {
			t.Fatalf("set %s: was %t", s.Name, there)
		}
		if delete(m.sets, s); !was {
			m.sets[s] = map[Element]bool{}
			for e := range d.content.sets[s] {
				m.sets[s][e] = true
			}
		}
	}
	for k, was := range d.elements {
		if !was {
			m.sets[k.set][k.element] = true
		}
	}
	for name := range d.chains {
		if rules, there := d.content.chains[name]; there {
			m.chains[name] = rules
		} else {
			delete(m.chains, name)
		}
	}
	for target, was := range d.isolated {
		if m.isolated[target] != was {
			t.Fatalf("%v led to %q, not %q", target, m.isolated[target], was)
		}
		if m.isolated[target] = d.content.isolated[target]; m.isolated[target] == "" {
			delete(m.isolated, target)
		}
	}
	m.whole(t)
}

func (m *mirror) whole(t *rapid.T) {
	for name, rules := range m.chains {
		for _, r := range rules {
			for _, s := range []Set{r.Peer, r.Ports, r.PodPorts} {
				if _, there := m.sets[s]; s.Name != "" && !there {
					t.Fatalf("chain %s names set %s, which is not there", name, s.Name)
				}
			}
			if _, there := m.chains[r.Jump]; r.Jump != "" && !there {
				t.Fatalf("chain %s jumps to %s, which is not there", name, r.Jump)
			}
		}
	}
	for target, name := range m.isolated {
		if _, there := m.chains[name]; !there {
			t.Fatalf("%v leads to %s, which is not there", target, name)
		}
	}
}

// TestChangesAddUp: whatever happened, the changes lead to what the end alone leads to, and
// nothing stays that nobody needs.
func TestChangesAddUp(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		e := newEngine(testNode)
		m := &mirror{map[Set]map[Element]bool{}, map[string][]Rule{}, map[target]string{}}
		m.take(t, e.take())
		g := newWorldGen()
		for range rapid.IntRange(1, 12).Draw(t, "steps") {
			for range rapid.IntRange(1, 4).Draw(t, "events") {
				g.event(t, e)
			}
			m.take(t, e.take())
		}
		fresh := newEngine(testNode)
		g.load(t, fresh)
		fresh.take()
		kernel := Content{m.sets, m.chains, m.isolated}
		if got, want := kernel.String(), fresh.content.String(); got != want {
			t.Fatalf("the changes lead to\n%s\nand not to\n%s", got, want)
		}
	})
}
