package artifacts

import "context"

// upstreamPrograms are the programs of upstream's test images, by the image's name.
var upstreamPrograms = map[string]string{
	"etcd":                   "go.etcd.io/etcd/server/v3",
	"nonewprivs":             "k8s.io/kubernetes/test/images/nonewprivs",
	"regression-issue-74839": "k8s.io/kubernetes/test/images/regression-issue-74839",
	"resource-consumer":      "k8s.io/kubernetes/test/images/resource-consumer",
	"consume-cpu":            "k8s.io/kubernetes/test/images/resource-consumer/consume-cpu",
	"sample-apiserver":       "k8s.io/sample-apiserver",
}

// Upstream builds the programs of upstream's test images and returns their paths.
func (s *Store) Upstream(ctx context.Context) (files map[string]string, err error) {
	files = map[string]string{}
	for name, pkg := range upstreamPrograms {
		if files[name], err = s.goTestProgram(ctx, name, pkg); err != nil {
			return nil, err
		}
	}
	return files, nil
}
