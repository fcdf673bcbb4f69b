package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vk-metal/vk-metal/tests/artifacts"
	"github.com/vk-metal/vk-metal/tests/cluster"
	"github.com/vk-metal/vk-metal/tests/progress"
	"github.com/vk-metal/vk-metal/tests/workload"
)

const (
	demoNamespace  = "default"
	demoName       = "web"
	demoReplicas   = 6
	rolloutTimeout = 3 * time.Minute
)

// demoCommand shows the main job: a Deployment that a real control plane schedules
// onto machines with vk-metal, and whose pods reach one another.
func demoCommand() *cobra.Command {
	var nodes int
	cmd := &cobra.Command{
		Use: "demo", Short: "Bring up a cluster in .demo, run a Deployment on it and show it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := demoDir()
			if err != nil {
				return err
			}
			d := demo{out: cmd.OutOrStdout(), dir: dir, progress: progress.New(cmd.OutOrStdout())}
			return d.run(cmd.Context(), nodes)
		},
	}
	cmd.Flags().IntVar(&nodes, "nodes", 2, "how many machines join")
	cmd.AddCommand(&cobra.Command{
		Use: "down", Short: "Remove the demo and everything that it made on this host", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			dir, err := demoDir()
			if err != nil {
				return err
			}
			step := progress.New(cmd.OutOrStdout()).Step("remove the demo")
			return step.Done(demoDown(cmd.Context(), dir))
		},
	})
	return cmd
}

// demoDir is .demo in the checkout; the rig's state lies in it.
func demoDir() (string, error) {
	root, err := artifacts.Root()
	return filepath.Join(root, ".demo"), err
}

func demoDown(ctx context.Context, dir string) error {
	if err := cluster.Down(ctx, filepath.Join(dir, "rig")); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

type demo struct {
	out      io.Writer
	dir      string
	progress *progress.Printer
	cluster  *cluster.Cluster
}

func (d *demo) run(ctx context.Context, nodes int) error {
	var err error
	d.cluster, err = cluster.Up(ctx, cluster.Options{Dir: filepath.Join(d.dir, "rig"), Nodes: nodes, Progress: d.progress})
	if err != nil {
		return err
	}
	if err := d.linkTools(); err != nil {
		return err
	}
	if err := d.deploy(ctx); err != nil {
		return err
	}
	if err := d.show(ctx); err != nil {
		return err
	}
	if err := d.mesh(ctx); err != nil {
		return err
	}
	d.explain()
	return nil
}

// linkTools puts kubeconfig and kubectl where a person finds them.
func (d *demo) linkTools() error {
	kubeconfig, err := os.ReadFile(d.cluster.ControlPlane.Kubeconfig())
	if err != nil {
		return fmt.Errorf("copy the kubeconfig: %w", err)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "kubeconfig"), kubeconfig, 0o600); err != nil {
		return fmt.Errorf("copy the kubeconfig: %w", err)
	}
	link := filepath.Join(d.dir, "kubectl")
	if err := os.RemoveAll(link); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	if err := os.Symlink(d.cluster.ControlPlane.Kubectl(), link); err != nil {
		return fmt.Errorf("link kubectl: %w", err)
	}
	return nil
}

func (d *demo) deploy(ctx context.Context) error {
	step := d.progress.Step("deploy %d agnhost pods", demoReplicas)
	ctx, cancel := context.WithTimeout(ctx, rolloutTimeout)
	defer cancel()
	web := workload.Web(demoNamespace, demoName, demoReplicas)
	// Another number of machines is another version, so that the pods spread anew.
	web.Spec.Template.Annotations = map[string]string{"demo.vk-metal.io/nodes": strconv.Itoa(len(d.cluster.Machines()))}
	err := workload.Apply(ctx, d.cluster.Client, web)
	if err == nil {
		err = workload.WaitRolledOut(ctx, d.cluster.Client, demoNamespace, demoName)
	}
	if step.Done(err) != nil {
		return d.failed(err)
	}
	return nil
}

// failed leaves the logs and says where.
func (d *demo) failed(err error) error {
	logs := filepath.Join(d.dir, "logs")
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if collected := d.cluster.CollectLogs(ctx, logs); collected != nil {
		d.progress.Printf("not everything could be collected: %v", collected)
	}
	return fmt.Errorf("%w\nlogs are in %s", err, logs)
}

func (d *demo) show(ctx context.Context) error {
	for _, args := range [][]string{{"get", "nodes", "-o", "wide"}, {"get", "pods", "-o", "wide"}} {
		out, err := d.cluster.Kubectl(ctx, args...)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.out, "\n$ kubectl %s\n%s", strings.Join(args, " "), out)
	}
	for _, machine := range d.cluster.Machines() {
		out, err := machine.Run(ctx, "systemctl", "list-units", "--no-pager", "--plain", "--no-legend", "vkm-*", "kubepods*")
		if err != nil {
			return err
		}
		fmt.Fprintf(d.out, "\n%s# systemctl list-units 'vkm-*' 'kubepods*'\n%s", machine.Name, out)
	}
	return nil
}

func (d *demo) mesh(ctx context.Context) error {
	step := d.progress.Step("every pod and every host asks every pod, by pod IP")
	pods, err := workload.Pods(ctx, d.cluster.Client, demoNamespace, demoName)
	if err != nil {
		return step.Done(err)
	}
	hosts := map[string]workload.Host{}
	for _, machine := range d.cluster.Machines() {
		hosts[machine.Name] = machine
	}
	matrix, err := workload.Mesh(ctx, d.cluster.Config, pods, hosts)
	if step.Done(err) != nil {
		return d.failed(err)
	}
	fmt.Fprintf(d.out, "\n%s\n", matrix)
	if failures := matrix.Failures(); len(failures) > 0 {
		return d.failed(fmt.Errorf("%d questions got no right answer:\n%s", len(failures), strings.Join(failures, "\n")))
	}
	d.progress.Printf("all %d questions answered", len(matrix.From)*len(matrix.To))
	return nil
}

func (d *demo) explain() {
	fmt.Fprintf(d.out, `
The demo is up after %.0f s and stays up. Look around (as root):

  export KUBECONFIG=%[2]s/kubeconfig PATH=%[2]s:$PATH
  kubectl get pods -o wide
  kubectl scale deployment %[3]s --replicas=20
  kubectl exec deploy/%[3]s -- ip address
  kubectl logs deploy/%[3]s

  metalrig machine shell metal-0        # enter a machine
  metalrig machine reboot metal-0
  metalrig machine journal metal-0 vk-metal

  make demo-down                     # remove everything
`, d.progress.Elapsed().Seconds(), d.dir, demoName)
}
