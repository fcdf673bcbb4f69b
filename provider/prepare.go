package provider

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/images"
	"github.com/vk-metal/vk-metal/internal/sandbox"
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/netns"
	"github.com/vk-metal/vk-metal/provider/podplan"
)

// Keys of the pod-wide operations.
const (
	opNetwork = "network"
	opSandbox = "sandbox"
	opVolumes = "volumes"
	// opVolumesUpdate renders volumes again that are in use.
	opVolumesUpdate = "volumes-update"
	opSlice         = "slice"
	// opRelease gives back what the pod holds.
	opRelease = "release"
)

// shared is what all containers of the pod need; ready is false until all of it is there.
type shared struct {
	in    podplan.PodInputs
	ips   []string
	ready bool
}

// prepare starts and collects the pod-wide operations; they run side by side.
func (w *worker) prepare(pod *corev1.Pod) (shared, error) {
	p := w.p
	var s shared
	w.countStart(pod)
	slice := w.begin(opSlice, time.Second, func(ctx context.Context) (any, error) {
		return nil, w.step("slice", func() error {
			return p.deps.Runtime.EnsureSlice(ctx, podplan.PodSlice(pod, p.deps.Node.PodPidsLimit))
		})
	})
	private := w.begin(opSandbox, time.Second, func(ctx context.Context) (any, error) { return w.ensureSandbox(ctx, pod) })
	network := &op{}
	if private.done || !podplan.OwnUsers(pod) { // its network belongs to its user namespace
		network = w.network(pod)
	}
	vols := w.volumes(pod)
	handler := w.runtimeHandler(pod)
	claimed := w.prepareClaims(pod)
	w.sandboxEvents(pod, vols, slice, network, private, handler)
	if !handler.done || !slice.done || !network.done || !private.done || !vols.done || !claimed.done {
		return s, nil
	}
	address := network.value.(netns.PodAddress)
	paths := private.value.(sandbox.Paths)
	s.ips = podIPs(pod, address, p.deps.HostIPs())
	files, err := w.etcFiles(pod, s.ips)
	if err != nil {
		return s, err
	}
	labels, err := w.podSELinux()
	if err != nil {
		return s, err
	}
	s.in = podplan.PodInputs{
		SELinux: labels,
		Layout:  p.deps.Layout, NetNS: address.Path, IPC: paths.IPC, Shm: paths.Shm, Users: planUsers(paths.Users), Handler: handler.value.(string),
		Hosts: files.hosts, ResolvConf: files.resolv, HostnameFile: files.hostname, Hostname: files.name,
		Volumes:        planVolumes(vols.value.(map[string]volumes.Mounted)),
		MemoryCapacity: p.deps.Node.MemoryCapacity, PodPidsLimit: p.deps.Node.PodPidsLimit,
		HugePages: p.deps.Node.HugePages,
		Seccomp:   p.deps.Node.Seccomp, SeccompDefault: p.deps.Node.SeccompDefault,
	}
	s.ready, w.furnished = true, true
	return s, nil
}

func podIPs(pod *corev1.Pod, address netns.PodAddress, hostIPs []string) []string {
	if pod.Spec.HostNetwork {
		return hostIPs
	}
	var ips []string
	for _, ip := range address.IPs {
		ips = append(ips, ip.String())
	}
	return ips
}

func (w *worker) network(pod *corev1.Pod) *op {
	return w.begin(opNetwork, time.Second, func(ctx context.Context) (any, error) {
		if pod.Spec.HostNetwork {
			return netns.PodAddress{}, nil
		}
		if err := w.p.deps.Network.Ready(); err != nil {
			return nil, fmt.Errorf("network is not ready: %w", err)
		}
		wanted, err := podNetwork(pod)
		if err != nil {
			return nil, err
		}
		var address netns.PodAddress
		err = w.step("network", func() (err error) {
			address, err = w.p.deps.Network.Setup(ctx, wanted)
			if err == nil && address.Problem != "" {
				w.event(pod, nil, corev1.EventTypeWarning, "NetworkChanged", "The network plugins find the pod's network changed: "+address.Problem)
			}
			if err != nil || w.p.deps.Policy == nil {
				return err
			}
			return w.p.deps.Policy.Admit(ctx, pod, address.IPs)
		})
		return address, err
	})
}

func podNetwork(pod *corev1.Pod) (netns.PodNetwork, error) {
	n := netns.PodNetwork{
		PodUID: string(pod.UID), Namespace: pod.Namespace, Name: pod.Name, Sysctls: podplan.NetSysctls(pod),
	}
	for _, c := range podplan.Containers(pod) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			hp := netns.HostPort{Protocol: string(port.Protocol), HostPort: uint16(port.HostPort), ContainerPort: uint16(port.ContainerPort)}
			if hp.Protocol == "" {
				hp.Protocol = string(corev1.ProtocolTCP)
			}
			if addr, err := netip.ParseAddr(port.HostIP); err == nil && !addr.IsUnspecified() {
				hp.HostIP = addr
			}
			n.HostPorts = append(n.HostPorts, hp)
		}
	}
	var err error
	n.Bandwidth, err = podBandwidth(pod)
	return n, err
}

// hostShm is what pods in the host's IPC namespace see.
const hostShm = "/dev/shm"

func (w *worker) ensureSandbox(ctx context.Context, pod *corev1.Pod) (any, error) {
	if pod.Spec.HostIPC {
		return sandbox.Paths{Shm: hostShm}, nil
	}
	var paths sandbox.Paths
	err := w.step("sandbox", func() (err error) {
		paths, err = w.p.deps.Sandbox.Ensure(ctx, string(w.uid), sandbox.Options{Users: podplan.OwnUsers(pod)})
		return err
	})
	return paths, err
}

func planUsers(users *sandbox.Users) *podplan.PodUsers {
	if users == nil {
		return nil
	}
	return &podplan.PodUsers{Path: users.Path, First: users.First, Size: sandbox.IDsPerPod}
}

// sandboxEvents says once per kind and text what holds the pod back.
func (w *worker) sandboxEvents(pod *corev1.Pod, vols *op, others ...*op) {
	for _, o := range others {
		if o.err != nil {
			w.event(pod, nil, corev1.EventTypeWarning, "FailedCreatePodSandBox", "Failed to create pod sandbox: "+o.err.Error())
		}
	}
	w.volumeEvents(pod, vols.err)
	w.lateVolumes(pod, vols)
	w.rejectForVolumes(pod, vols.err)
}

// image makes the container's image present.
func (w *worker) image(pod *corev1.Pod, c podplan.Container, attempt int) *op {
	return w.begin(imageOp(c.Name, attempt), imageRetry, func(ctx context.Context) (any, error) {
		secrets := w.pullSecrets(ctx, pod)
		var image images.Image
		begin := time.Now()
		defer func() { w.pulled(time.Since(begin)) }()
		err := w.step("image", func() (err error) {
			image, err = w.p.deps.Images.Ensure(ctx, images.PullRequest{
				Ref: c.Image, Policy: pullPolicy(c), Secrets: secrets, Pod: pod,
				Event: func(e images.PullEvent) { w.event(pod, &c, e.Type, e.Reason, e.Message) },
			})
			return err
		})
		return image, err
	})
}

func pullPolicy(c podplan.Container) corev1.PullPolicy {
	if c.ImagePullPolicy != "" {
		return c.ImagePullPolicy
	}
	return corev1.PullIfNotPresent
}

func (w *worker) pullSecrets(ctx context.Context, pod *corev1.Pod) []corev1.Secret {
	var secrets []corev1.Secret
	var missing []string
	for _, ref := range pod.Spec.ImagePullSecrets {
		secret, err := w.p.deps.Objects.Secret(ctx, pod.Namespace, ref.Name)
		if err != nil {
			missing = append(missing, ref.Name)
			continue
		}
		secrets = append(secrets, *secret)
	}
	if len(missing) > 0 {
		w.event(pod, nil, corev1.EventTypeWarning, "FailedToRetrieveImagePullSecret",
			fmt.Sprintf("Unable to retrieve some image pull secrets (%s); attempting to pull the image may not succeed.", strings.Join(missing, ", ")))
	}
	return secrets
}

// imageWaiting is the waiting state for an image that cannot be had.
func imageWaiting(err error) podplan.Waiting {
	var e *images.Error
	if errors.As(err, &e) {
		message := e.Error()
		return podplan.Waiting{Reason: e.Reason, Message: message}
	}
	return podplan.Waiting{Reason: "ErrImagePull", Message: err.Error()}
}

func planImage(i images.Image) podplan.Image {
	return podplan.Image{
		Ref: i.Ref, Digest: i.Digest, Layers: i.Layers, Host: i.Host, HostPath: i.HostPath,
		Entrypoint: i.Config.Entrypoint, Cmd: i.Config.Cmd, Env: i.Config.Env, User: i.Config.User,
		WorkingDir: i.Config.WorkingDir, StopSignal: i.Config.StopSignal,
	}
}
