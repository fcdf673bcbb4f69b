package version

import (
	"regexp"
	"testing"

	utilversion "k8s.io/apimachinery/pkg/util/version"
)

func TestKubeletIsSemverOfTheRelease(t *testing.T) {
	v, err := utilversion.ParseSemantic(Kubelet())
	if err != nil {
		t.Fatalf("parse %q: %v", Kubelet(), err)
	}
	if v.PreRelease() != "" {
		t.Errorf("%q is a pre-release: version skew checks would take it for older", Kubelet())
	}
	if !regexp.MustCompile(`^v1\.\d+\.\d+$`).MatchString(Kubernetes()) {
		t.Errorf("Kubernetes() = %q", Kubernetes())
	}
}
