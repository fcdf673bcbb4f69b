package artifacts

import (
	"context"
	"path/filepath"
)

// NewKubeProxyVersion is that of the second kube-proxy, which tests/kubeproxy/go.mod pins.
const NewKubeProxyVersion = "v1.36.3"

// NewKubeProxy builds a kube-proxy of a later version than the cluster's, a module of its
// own, and returns the program's path. Cold: 3 minutes on 2 cores.
func (s *Store) NewKubeProxy(ctx context.Context) (file string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	return s.goProgram(ctx, goProgram{
		name: "kube-proxy", module: filepath.Join(root, "tests", "kubeproxy"), pkg: "k8s.io/kubernetes/cmd/kube-proxy", ldflags: versionFlags(NewKubeProxyVersion),
	})
}
