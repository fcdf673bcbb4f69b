// Package version says what was built. It is a leaf: it knows nothing of the rest.
package version

import (
	"runtime"
	"runtime/debug"
	"strings"
)

// Stamped with -ldflags "-X github.com/vk-metal/vk-metal/internal/version.version=v0.1.0 -X ….commit=… -X ….date=…".
var (
	version = "v0.0.0-dev"
	commit  = ""
	date    = ""
)

// kubernetes is the release whose kubelet behaviour is reproduced; a build with module
// information says it better.
const kubernetes = "v1.35.4"

// Version is the vk-metal release ("v0.1.0").
func Version() string { return version }

// Kubernetes is the Kubernetes release that the client libraries come from ("v1.35.4"):
// k8s.io/client-go v0.X.Y belongs to Kubernetes v1.X.Y.
func Kubernetes() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return kubernetes
	}
	for _, dep := range info.Deps {
		if dep.Path == "k8s.io/client-go" && strings.HasPrefix(dep.Version, "v0.") {
			return "v1." + strings.TrimPrefix(dep.Version, "v0.")
		}
	}
	return kubernetes
}

// Kubelet is what the node reports as nodeInfo.kubeletVersion: the Kubernetes release
// with this build as semver build metadata, so that version skew is judged by the release.
func Kubelet() string {
	return Kubernetes() + "+vk-metal." + strings.TrimPrefix(strings.ReplaceAll(version, "+", "."), "v")
}

// UserAgent names the agent to the API server.
func UserAgent() string {
	return "vk-metal/" + version + " (" + runtime.GOOS + "/" + runtime.GOARCH + ")"
}

// String is the long form for `vk-metal version`.
func String() string {
	s := "vk-metal " + version + " (kubelet " + Kubernetes() + ", " + runtime.Version() + ", " + runtime.GOOS + "/" + runtime.GOARCH
	if commit != "" {
		s += ", commit " + commit
	}
	if date != "" {
		s += ", built " + date
	}
	return s + ")"
}
