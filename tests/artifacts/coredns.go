package artifacts

import (
	"context"
	"path/filepath"
)

// CoreDNS builds the cluster's DNS server, a module of its own, and returns the
// program's path.
func (s *Store) CoreDNS(ctx context.Context) (file string, err error) {
	root, err := Root()
	if err != nil {
		return "", err
	}
	program := goProgram{name: "coredns", module: filepath.Join(root, "tests", "coredns"), pkg: "."}
	return s.goProgram(ctx, program)
}
