// Command kubernetes is every server-side part of a Kubernetes cluster in one
// multi-call binary: one link step instead of six. It runs the component named
// by argv[0], or by its first argument.
//
// The parts are the upstream ones, unmodified, from the k8s.io/kubernetes and
// go.etcd.io/etcd modules; the rig links this binary under each component's name.
package main

import (
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	kubectlutil "k8s.io/kubectl/pkg/cmd/util"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllermanager "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
)

// components maps a component's name to its entry point, which gets the
// arguments with the component's name first and returns the exit code.
var components = map[string]func(args []string) int{
	"etcd":                    runEtcd,
	"kube-apiserver":          cobraMain(apiserver.NewAPIServerCommand),
	"kube-controller-manager": cobraMain(controllermanager.NewControllerManagerCommand),
	"kube-proxy":              cobraMain(proxy.NewProxyCommand),
	"kube-scheduler":          cobraMain(func() *cobra.Command { return scheduler.NewSchedulerCommand() }),
	"kubectl":                 runKubectl,
}

func main() {
	args := os.Args
	name := filepath.Base(args[0])
	run, found := components[name]
	if !found && len(args) > 1 {
		args = args[1:]
		name = args[0]
		run, found = components[name]
	}
	if !found {
		fmt.Fprintf(os.Stderr, "kubernetes: unknown component %q, want one of: %s\n", name, strings.Join(names(), " "))
		os.Exit(2)
	}
	os.Args = args
	os.Exit(run(args))
}

func names() []string {
	var all []string
	for name := range components {
		all = append(all, name)
	}
	sort.Strings(all)
	return all
}

func cobraMain(command func() *cobra.Command) func([]string) int {
	return func([]string) int { return cli.Run(command()) }
}

func runEtcd(args []string) int {
	etcdmain.Main(args)
	return 0
}

func runKubectl([]string) int {
	if err := cli.RunNoErrOutput(kubectl.NewDefaultKubectlCommand()); err != nil {
		kubectlutil.CheckErr(err)
	}
	return 0
}
