// Package e2e judges vk-metal from outside: a real control plane, machines that
// installed the package, and what kubectl and systemctl show. Set VK_METAL_E2E=1 and
// be root; VK_METAL_STATE names a cluster that is kept and used again. With
// VK_METAL_TEST_V2=1 the second node is a virtual machine with cgroup v2.
package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/rig"
)

// shared is the cluster of all tests; nil when they are not wanted.
var shared *cluster.Cluster

// tearDown removes the cluster, unless it is kept.
var tearDown = func() {}

const (
	// upTime bounds the making of the cluster, what is not built yet included.
	upTime = 30 * time.Minute
	// downTime bounds its end, and the collection of logs.
	downTime = 3 * time.Minute
)

// results is where failing tests leave their logs.
var results string

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Getenv("VK_METAL_E2E") == "" {
		return m.Run()
	}
	root, err := artifacts.Root()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	results = filepath.Join(root, "tests", "results", time.Now().UTC().Format("20060102-150405"))
	dir, keep := os.LookupEnv("VK_METAL_STATE")
	if !keep {
		dir = filepath.Join(root, ".rig", "e2e")
	}
	release, err := rig.Reserve(dir)
	if err != nil {
		fmt.Fprintf(os.Stderr, "%v (VK_METAL_STATE names one)\n", err)
		return 1
	}
	defer release()
	if !keep {
		tearDown = func() { down(dir) }
	}
	defer func() { tearDown() }()
	options := cluster.Options{Dir: dir, Nodes: 2, Progress: progress.New(os.Stderr)}
	if os.Getenv(moreTests) != "" {
		options.ControlPlane.APIServers = 2
		options.ControlPlane.FeatureGates = restartGates
		options.Controller = true
	}
	limit := upTime
	if os.Getenv("VK_METAL_TEST_V2") != "" {
		options.Nodes, options.VirtualNodes = 1, 1
		limit = virtualTestTime
	}
	if err := up(options, limit); err != nil {
		fmt.Fprintln(os.Stderr, err)
		collect(dir)
		return 1
	}
	return m.Run()
}

// up makes the cluster in no more than the limit.
func up(options cluster.Options, limit time.Duration) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	shared, err = cluster.Up(ctx, options)
	return err
}

func down(dir string) {
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	if err := cluster.Down(ctx, dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
}

// collect saves the logs of a cluster that did not come up.
func collect(dir string) {
	r, err := rig.Open(dir)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), downTime)
	defer cancel()
	err = r.CollectLogs(ctx, filepath.Join(results, "up"))
	fmt.Fprintf(os.Stderr, "logs are in %s (%v)\n", filepath.Join(results, "up"), err)
}
