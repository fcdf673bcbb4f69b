package e2e

import (
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
)

// leftScript prints whatever on a machine carries the UID of a pod: units, directories,
// cgroups, mounts (pinned namespaces among them).
const leftScript = `
systemctl list-units --all --plain --no-legend 'vkm-*' 'kubepods*-pod*.slice' | awk '{print $1}'
ls /run/vk-metal/pods /run/vk-metal/log-streams /var/lib/vk-metal/pods /run/vk-metal/adopt/pods 2>/dev/null | grep -v ':$'
ls /var/log/pods
find /sys/fs/cgroup -maxdepth 6 -type d -name 'kubepods*-pod*.slice' -printf '%f\n' 2>/dev/null
awk '{print $5}' /proc/self/mountinfo | grep -E 'vk-metal/pods|kubelet/pods'
true`

// heldScript prints network namespaces that the agent holds open and nothing pins: their
// pod is gone, they are not.
const heldScript = `
pinned=$(awk '{print $4}' /proc/self/mountinfo; readlink /proc/1/ns/net)
for fd in /proc/$(systemctl show --property=MainPID --value vk-metal.service)/fd/*; do
	case $(readlink $fd) in
	net:*) case $pinned in *"$(readlink $fd)"*) ;; *) echo "held-$(readlink $fd)" ;; esac ;;
	esac
done`

// nothingLeft checks that the node has nothing of any pod but those that the API has.
func (e *env) nothingLeft(node string) {
	e.Helper()
	e.eventually(time.Minute, func() string {
		pods, err := e.c.Client.CoreV1().Pods("").List(e.Context(), metav1.ListOptions{
			FieldSelector: fields.OneTermEqualSelector("spec.nodeName", node).String(),
		})
		if err != nil {
			return err.Error()
		}
		left := unknown(e.on(node, "bash", "-c", leftScript), pods.Items)
		left = append(left, strings.Fields(e.on(node, "bash", "-c", heldScript))...)
		if !e.machine(node).Virtual() { // no namespace of this host is its network
			left = append(left, unknown(e.network(node, "ip", "-o", "link", "show", "group", "30315"), pods.Items)...)
			left = append(left, e.strayAddresses(node, pods.Items)...)
		}
		if len(left) > 0 {
			return "left on the node: " + strings.Join(left, ", ")
		}
		return ""
	})
}

// unknown are the lines that carry no UID of a pod.
func unknown(text string, pods []corev1.Pod) []string {
	var left []string
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		known := slices.ContainsFunc(pods, func(p corev1.Pod) bool {
			return strings.Contains(strings.ReplaceAll(line, "_", "-"), string(p.UID))
		})
		if line != "" && !known {
			left = append(left, line)
		}
	}
	return left
}

// element is an interface with an address in a set of nftables.
var element = regexp.MustCompile(`"vkm[a-z2-7]+" \. ([0-9a-f.:]+)`)

// strayAddresses are those that the node has a route or a rule for and that are no pod's.
func (e *env) strayAddresses(node string, pods []corev1.Pod) []string {
	e.Helper()
	var have []string
	for _, family := range []string{"-4", "-6"} {
		for line := range strings.Lines(e.network(node, "ip", family, "route", "show", "table", "main", "proto", "119")) {
			have = append(have, strings.Fields(line)[0])
		}
	}
	for _, match := range element.FindAllStringSubmatch(e.network(node, "nft", "list", "table", "inet", "vk-metal-pods"), -1) {
		have = append(have, match[1])
	}
	return slices.DeleteFunc(have, func(text string) bool {
		address, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimSuffix(text, "/32"), "/128"))
		return err == nil && slices.ContainsFunc(pods, func(p corev1.Pod) bool {
			return slices.ContainsFunc(p.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == address.String() })
		})
	})
}

// network runs a program of this host in the machine's network: machines need not have ip
// and nft.
func (e *env) network(node string, argv ...string) string {
	e.Helper()
	leader, err := e.machine(node).Leader(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	out, err := exec.CommandContext(e.Context(), "nsenter", append([]string{"-t", strconv.Itoa(leader), "-n"}, argv...)...).CombinedOutput()
	if err != nil {
		e.Fatalf("%v on %s: %v: %s", argv, node, err, out)
	}
	return string(out)
}
