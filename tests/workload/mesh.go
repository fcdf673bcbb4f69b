package workload

import (
	"context"
	"fmt"
	"net/netip"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
)

// Host is a machine that asks pods as itself.
type Host interface {
	// Run executes a command on the machine and returns its stdout.
	Run(ctx context.Context, argv ...string) (string, error)
}

// Matrix says who got an answer from whom.
type Matrix struct {
	From  []string // pods, then hosts
	To    []Target
	cells map[[2]int]string // what was answered, or why not
	ok    map[[2]int]bool
}

// Target is one address of a pod.
type Target struct {
	Pod, Node string
	Address   netip.Addr
}

// Mesh lets every pod, and every host, ask every address of every pod for its name.
// A pod asks itself, too.
func Mesh(ctx context.Context, config *rest.Config, pods []corev1.Pod, hosts map[string]Host) (*Matrix, error) {
	m := &Matrix{cells: map[[2]int]string{}, ok: map[[2]int]bool{}}
	sort.Slice(pods, func(i, j int) bool {
		return pods[i].Spec.NodeName+pods[i].Name < pods[j].Spec.NodeName+pods[j].Name
	})
	for _, pod := range pods {
		for _, ip := range pod.Status.PodIPs {
			address, err := netip.ParseAddr(ip.IP)
			if err != nil {
				return nil, fmt.Errorf("pod %s: %w", pod.Name, err)
			}
			m.To = append(m.To, Target{Pod: pod.Name, Node: pod.Spec.NodeName, Address: address})
		}
	}
	if len(m.To) == 0 {
		return nil, fmt.Errorf("ask pods: none of %d has an address", len(pods))
	}
	script := m.script()
	var ask []func(ctx context.Context) (string, error)
	for i := range pods {
		m.From = append(m.From, fmt.Sprintf("%s (%s)", pods[i].Name, pods[i].Spec.NodeName))
		ask = append(ask, func(ctx context.Context) (string, error) {
			out, stderr, err := Exec(ctx, config, &pods[i], "", nil, "bash", "-c", script)
			if err != nil {
				err = fmt.Errorf("%w: %s", err, stderr)
			}
			return out, err
		})
	}
	for _, name := range sortedKeys(hosts) {
		m.From = append(m.From, name+" (host)")
		ask = append(ask, func(ctx context.Context) (string, error) { return hosts[name].Run(ctx, "bash", "-c", script) })
	}
	return m, m.fill(ctx, ask)
}

// script asks all targets at once with nothing but bash, one line of answer each.
func (m *Matrix) script() string {
	var b strings.Builder
	b.WriteString("ask() { local line; exec 3<>/dev/tcp/$2/$3 || return; printf 'GET /hostname HTTP/1.0\\r\\n\\r\\n' >&3; " +
		"while IFS= read -r -t 20 line <&3 || [ -n \"$line\" ]; do last=$line; done; printf '%s %s\\n' $1 \"$last\"; }\n")
	for i, target := range m.To {
		fmt.Fprintf(&b, "(ask %d %s %d) 2>&1 &\n", i, target.Address, Port)
	}
	b.WriteString("wait\n")
	return b.String()
}

func (m *Matrix) fill(ctx context.Context, ask []func(context.Context) (string, error)) error {
	answers := make([]string, len(ask))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for i := range ask {
		group.Go(func() (err error) {
			if answers[i], err = ask[i](ctx); err != nil {
				return fmt.Errorf("ask from %s: %w", m.From[i], err)
			}
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	for from, text := range answers {
		m.read(from, text)
	}
	return nil
}

// read takes the answers of one asker: "<target> <host name>" lines.
func (m *Matrix) read(from int, text string) {
	for line := range strings.Lines(text) {
		var to int
		var name string
		if n, _ := fmt.Sscanf(line, "%d %s", &to, &name); n != 2 || to < 0 || to >= len(m.To) {
			continue
		}
		m.cells[[2]int{from, to}] = name
		m.ok[[2]int{from, to}] = name == m.To[to].Pod
	}
}

// Failures lists who got no or a wrong answer from whom.
func (m *Matrix) Failures() []string {
	var failures []string
	for from := range m.From {
		for to, target := range m.To {
			cell := [2]int{from, to}
			if !m.ok[cell] {
				failures = append(failures, fmt.Sprintf("%s -> %s (%s, %s): answer %q", m.From[from], target.Pod, target.Address, target.Node, m.cells[cell]))
			}
		}
	}
	return failures
}

// String is the matrix with one column per address, numbered below it.
func (m *Matrix) String() string {
	width := 0
	for _, from := range m.From {
		width = max(width, len(from))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s", width, "from \\ to")
	for to := range m.To {
		fmt.Fprintf(&b, " %3d", to+1)
	}
	b.WriteString("\n")
	for from, name := range m.From {
		fmt.Fprintf(&b, "%-*s", width, name)
		for to := range m.To {
			mark := "-"
			if m.ok[[2]int{from, to}] {
				mark = "ok"
			}
			fmt.Fprintf(&b, " %3s", mark)
		}
		b.WriteString("\n")
	}
	for to, target := range m.To {
		fmt.Fprintf(&b, "%3d = %s %s on %s\n", to+1, target.Address, target.Pod, target.Node)
	}
	return b.String()
}

func sortedKeys(hosts map[string]Host) []string {
	keys := make([]string, 0, len(hosts))
	for key := range hosts {
		keys = append(keys, key)
	}
	sort.Strings(keys)
	return keys
}
