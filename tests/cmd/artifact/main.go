// Command artifact builds one of the rig's artifacts, unless the cache has it, and
// prints where it is: for scripts.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/progress"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	path, err := build(ctx, os.Args[1:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "artifact:", err)
		os.Exit(1) //nolint:gocritic // nothing is left to be undone
	}
	fmt.Println(path)
}

func build(ctx context.Context, args []string) (string, error) {
	store, err := artifacts.NewStore(artifacts.DefaultDir(), progress.New(os.Stderr))
	if err != nil {
		return "", err
	}
	builders := map[string]func(context.Context) (string, error){
		"kubernetes": store.Kubernetes, "agnhost": store.Agnhost, "package": store.Package, "kube-proxy": store.NewKubeProxy,
	}
	if len(args) == 1 && builders[args[0]] != nil {
		return builders[args[0]](ctx)
	}
	return "", fmt.Errorf("usage: artifact kubernetes|agnhost|package|kube-proxy")
}
