package podplan

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"regexp"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Names of the slices above the pods', as a kubelet with the systemd driver has them.
const (
	SliceRoot       = "kubepods.slice"
	SliceBurstable  = "kubepods-burstable.slice"
	SliceBestEffort = "kubepods-besteffort.slice"
)

// SliceName is the pod's slice. systemd nests at "-", so the UID's become "_".
func SliceName(uid string, qos corev1.PodQOSClass) string {
	escaped := strings.ReplaceAll(uid, "-", "_")
	switch qos {
	case corev1.PodQOSGuaranteed:
		return "kubepods-pod" + escaped + ".slice"
	case corev1.PodQOSBestEffort:
		return "kubepods-besteffort-pod" + escaped + ".slice"
	}
	return "kubepods-burstable-pod" + escaped + ".slice"
}

// SliceNames are all names that the slice of a pod with this UID may have.
func SliceNames(uid string) []string {
	return []string{
		SliceName(uid, corev1.PodQOSGuaranteed), SliceName(uid, corev1.PodQOSBurstable), SliceName(uid, corev1.PodQOSBestEffort),
	}
}

// UnitName is the unit of one attempt. It is never parsed.
func UnitName(uid, container string, attempt int) string {
	return fmt.Sprintf("vkm-%s-%s-%d.service", uid, container, attempt)
}

// SpecHash tells whether a container has to be replaced: only its image can change in a
// running pod (resources are changed in place).
func SpecHash(c Container) string {
	sum := sha256.Sum256([]byte(c.Name + "\x00" + c.Image))
	return hex.EncodeToString(sum[:8])
}

var uidPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9-]{0,62}$`)

// CheckNames refuses a pod whose identity could not be part of a path or a unit name. The
// API server lets none of these through; this holds when it is not what it seems.
func CheckNames(pod *corev1.Pod) error {
	if !uidPattern.MatchString(string(pod.UID)) {
		return fmt.Errorf("check pod: metadata.uid %q is not a UID", pod.UID)
	}
	if msgs := validation.IsDNS1123Label(pod.Namespace); len(msgs) > 0 {
		return fmt.Errorf("check pod: metadata.namespace %q: %s", pod.Namespace, msgs[0])
	}
	if msgs := validation.IsDNS1123Subdomain(pod.Name); len(msgs) > 0 {
		return fmt.Errorf("check pod: metadata.name %q: %s", pod.Name, msgs[0])
	}
	seen := map[string]bool{}
	for _, c := range Containers(pod) {
		if msgs := validation.IsDNS1123Label(c.Name); len(msgs) > 0 {
			return fmt.Errorf("check pod: container name %q: %s", c.Name, msgs[0])
		}
		if seen[c.Name] {
			return fmt.Errorf("check pod: container name %q appears twice", c.Name)
		}
		seen[c.Name] = true
	}
	return nil
}

// IsUID says whether a string can be a pod's UID.
func IsUID(s string) bool { return uidPattern.MatchString(s) }
