package bench

import (
	"bufio"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vk-metal/vk-metal/tests/cluster"
)

// stages are the agent's histograms of pods' starts: sum and count by step or stage.
type stages map[string]struct{ sum, count float64 }

var stageLine = regexp.MustCompile(`^vk_metal_pod_(step|start)_duration_seconds_(sum|count){(?:step|until)="([^"]+)"} (\S+)$`)

func (b *bench) stages() stages {
	b.Helper()
	out, err := b.c.Client.CoreV1().RESTClient().Get().AbsPath("/api/v1/nodes", cluster.NodeName(0), "proxy/metrics").DoRaw(b.ctx)
	if err != nil {
		b.Fatal(err)
	}
	found := stages{}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		match := stageLine.FindStringSubmatch(lines.Text())
		if match == nil {
			continue
		}
		value, err := strconv.ParseFloat(match[4], 64)
		if err != nil {
			b.Fatal(err)
		}
		name := match[3]
		if match[1] == "start" {
			name = "until " + name
		}
		stage := found[name]
		if match[2] == "sum" {
			stage.sum = value
		} else {
			stage.count = value
		}
		found[name] = stage
	}
	return found
}

// since are the means after before, in milliseconds, the stages of a start first.
func (s stages) since(before stages) string {
	var parts []string
	for name, now := range s {
		if n := now.count - before[name].count; n > 0 {
			mean := (now.sum - before[name].sum) / n
			parts = append(parts, fmt.Sprintf("%s %s", name, ms(time.Duration(mean*float64(time.Second)))))
		}
	}
	slices.SortFunc(parts, func(a, b string) int {
		if a, b := strings.HasPrefix(a, "until "), strings.HasPrefix(b, "until "); a != b {
			if a {
				return -1
			}
			return 1
		}
		return strings.Compare(a, b)
	})
	return strings.Join(parts, ", ") + " ms"
}
