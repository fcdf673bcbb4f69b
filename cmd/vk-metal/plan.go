package main

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"unicode/utf8"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/launchspec"
	"github.com/vk-metal/vk-metal/internal/logs"
	"github.com/vk-metal/vk-metal/internal/paths"
	"github.com/vk-metal/vk-metal/internal/poddefaults"
	"github.com/vk-metal/vk-metal/internal/sandbox"
	"github.com/vk-metal/vk-metal/internal/seccomp"
	"github.com/vk-metal/vk-metal/internal/selinux"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

func newPlan(g *globals) *cobra.Command {
	return &cobra.Command{
		Use:   "plan pod.yaml",
		Short: "Print what would be done for a pod: slice, units, launch specs",
		Long: `Print what would be done for a new pod: its slice, and for each container the unit and
the launch spec. Nothing is asked of the cluster and nothing is started. What is only
known on the way is a placeholder: volumes and namespaces are named by where they
would be, an image that is not present has no command of its own, and variables that
come from other objects show where from.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			data, err := readInput(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			pod, err := parsePod(args[0], data)
			if err != nil {
				return err
			}
			return printPlan(cmd.Context(), g.layout, planLabels(), pod, cmd.OutOrStdout())
		},
	}
}

func readInput(path string, stdin io.Reader) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(stdin)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read pod: %w", err)
	}
	return data, nil
}

// parsePod reads one Pod, strictly, and fills in what an API server would.
func parsePod(name string, data []byte) (*corev1.Pod, error) {
	pod := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(data, pod); err != nil {
		return nil, fmt.Errorf("read pod %s: %w", name, err)
	}
	if pod.Kind != "Pod" || pod.APIVersion != "v1" {
		return nil, fmt.Errorf("read pod %s: it is a %s %s, not a v1 Pod", name, pod.APIVersion, pod.Kind)
	}
	if pod.Name == "" || len(pod.Spec.Containers) == 0 {
		return nil, fmt.Errorf("read pod %s: it has no name or no container", name)
	}
	if pod.UID == "" {
		pod.UID = "00000000-0000-0000-0000-000000000000"
	}
	poddefaults.Set(pod)
	return pod, nil
}

func printPlan(ctx context.Context, layout paths.Layout, labels *podplan.PodSELinux, pod *corev1.Pod, w io.Writer) error {
	if err := podplan.CheckNames(pod); err != nil {
		return err
	}
	store, in := planStore(layout), planInputs(layout, pod)
	in.SELinux = labels
	plan := podplan.For(pod, podplan.Observed{}, podplan.Policy{}, in, func(c podplan.Container) (podplan.ContainerInputs, bool) {
		return planContainer(ctx, layout, store, pod, c), true
	})
	data, err := json.Marshal(plan)
	if err != nil {
		return fmt.Errorf("print plan: %w", err)
	}
	var tree any
	if err := json.Unmarshal(data, &tree); err != nil {
		return fmt.Errorf("print plan: %w", err)
	}
	readable(tree)
	out, err := yaml.Marshal(tree)
	if err != nil {
		return fmt.Errorf("print plan: %w", err)
	}
	_, err = w.Write(out)
	return err
}

// planStore opens the image store if there is one; a plan makes none.
func planStore(layout paths.Layout) *images.Manager {
	if _, err := os.Stat(layout.Images()); err != nil {
		return nil
	}
	store, err := images.NewManager(images.Options{Root: layout.Images(), HostImages: true})
	if err != nil {
		return nil
	}
	return store
}

// planInputs names what is made before the containers start by where it will be.
func planInputs(layout paths.Layout, pod *corev1.Pod) podplan.PodInputs {
	uid := string(pod.UID)
	in := podplan.PodInputs{
		Layout: layout, Hostname: cmp.Or(pod.Spec.Hostname, pod.Name), IPC: layout.Namespace(uid, "ipc"), Shm: layout.PodRun(uid) + "/shm",
		Hosts: layout.PodLib(uid) + "/etc-hosts", ResolvConf: layout.PodLib(uid) + "/resolv.conf", HostnameFile: layout.PodLib(uid) + "/hostname",
		Volumes: map[string]podplan.Volume{}, Seccomp: seccomp.HostOf(runtime.GOARCH, ""),
	}
	if !pod.Spec.HostNetwork {
		in.NetNS = layout.Namespace(uid, "net")
	}
	if class := pod.Spec.RuntimeClassName; class != nil && podplan.KnownHandler(*class) {
		in.Handler = *class // the class itself is the API server's: its handler may be called otherwise
	}
	if podplan.OwnUsers(pod) {
		in.Users = &podplan.PodUsers{Path: layout.Namespace(uid, "user"), Size: sandbox.IDsPerPod}
	}
	for _, volume := range pod.Spec.Volumes {
		in.Volumes[volume.Name] = podplan.Volume{Path: layout.PodLib(uid) + "/volumes/" + volume.Name, Relabel: volume.HostPath == nil && volume.NFS == nil}
	}
	return in
}

// planLabels are what the host's policy says, nil without SELinux. The level is the pod's once it is
// here.
func planLabels() *podplan.PodSELinux {
	host := selinux.New("")
	if host == nil {
		return nil
	}
	process, file := host.Defaults()
	return &podplan.PodSELinux{Process: process, File: file, Level: "<of its own>"}
}

func planContainer(ctx context.Context, layout paths.Layout, store *images.Manager, pod *corev1.Pod, c podplan.Container) podplan.ContainerInputs {
	uid := string(pod.UID)
	stream := layout.LogStream(uid, c.Name, 0)
	in := podplan.ContainerInputs{
		Image: planImage(ctx, store, c.Image), Stdout: stream + "/stdout", Stderr: stream + "/stderr",
		TerminationLog: layout.AttemptRun(uid, c.Name, 0) + "/termination-log",
	}
	if c.Stdin {
		in.Stdin = logs.StdinPath(layout, uid, c.Name, 0)
	}
	if c.TTY {
		terminal := logs.TerminalOf(layout, uid, c.Name, 0)
		in.Terminal, in.Stdin, in.Stdout, in.Stderr = &terminal, "", "", ""
	}
	if podplan.SharesPID(pod) {
		in.PIDOf = &launchspec.UnitProcess{Unit: podplan.UnitName(uid, podplan.PauseName, 0)}
	}
	for _, env := range c.Env {
		value := env.Value
		if env.ValueFrom != nil {
			source, err := json.Marshal(env.ValueFrom)
			value = "<from " + string(source) + ">"
			if err != nil {
				value = "<from another object>"
			}
		}
		in.Env = append(in.Env, podplan.EnvVar{Name: env.Name, Value: value})
	}
	return in
}

// planImage is the image as far as this node has it; it is never pulled.
func planImage(ctx context.Context, store *images.Manager, ref string) podplan.Image {
	image := podplan.Image{Ref: ref, Digest: "<not present>"}
	if store == nil {
		return image
	}
	have, err := store.Ensure(ctx, images.PullRequest{Ref: ref, Policy: corev1.PullNever})
	if err != nil {
		return image
	}
	c := have.Config
	return podplan.Image{
		Ref: ref, Digest: have.Digest, Layers: have.Layers, Host: have.Host, HostPath: have.HostPath,
		Entrypoint: c.Entrypoint, Cmd: c.Cmd, Env: c.Env, User: c.User, WorkingDir: c.WorkingDir, StopSignal: c.StopSignal,
	}
}

// readable turns the byte strings of launch specs, base64 in JSON, into text where they are text.
func readable(tree any) {
	switch node := tree.(type) {
	case map[string]any:
		for key, value := range node {
			if list, ok := value.([]any); ok && (key == "args" || key == "env") {
				texts(list)
			}
			if program, ok := value.(string); ok && key == "seccompBPF" {
				node[key] = fmt.Sprintf("<%d bytes>", base64.StdEncoding.DecodedLen(len(program)))
			}
			readable(value)
		}
	case []any:
		for _, value := range node {
			readable(value)
		}
	}
}

func texts(list []any) {
	for i, item := range list {
		encoded, _ := json.Marshal(item)
		var raw []byte
		if json.Unmarshal(encoded, &raw) == nil && utf8.Valid(raw) {
			list[i] = string(raw)
		}
	}
}
