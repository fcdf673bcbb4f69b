package volumes

import (
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/vk-metal/vk-metal/internal/objects"
)

// trustBundle is the trust anchors that a projection selects, in one file.
func (v volume) trustBundle(ctx context.Context, s *corev1.ClusterTrustBundleProjection, mode int32) (payload, error) {
	texts, err := v.m.opts.TrustBundles.TrustBundles(ctx, s)
	if err != nil {
		return nil, refusedIfNotServed("clusterTrustBundle", err)
	}
	if len(texts) == 0 && !isTrue(s.Optional) {
		if s.Name != nil {
			return nil, apierrors.NewNotFound(schema.GroupResource{Group: "certificates.k8s.io", Resource: "clustertrustbundles"}, *s.Name)
		}
		return nil, errors.New("combination of signerName and labelSelector matched zero ClusterTrustBundles")
	}
	return payload{s.Path: v.owned(anchors(texts), mode)}, nil
}

// refusedIfNotServed refuses a source by its JSON name where the cluster has not the API of it.
func refusedIfNotServed(name string, err error) error {
	var notServed *objects.NotServedError
	if errors.As(err, &notServed) {
		return fmt.Errorf("%w: %w", unsupportedSource(name), err)
	}
	return err
}

// anchors are the certificates of all texts, each once, in the order of their bytes: the same ones
// make the same file. What else the texts have is left out.
func anchors(texts []string) []byte {
	seen := map[string]struct{}{}
	for _, text := range texts {
		rest := []byte(text)
		for {
			var block *pem.Block
			if block, rest = pem.Decode(rest); block == nil {
				break
			}
			if block.Type == pemCertificate {
				seen[string(block.Bytes)] = struct{}{}
			}
		}
	}
	var out []byte
	for _, der := range slices.Sorted(maps.Keys(seen)) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: []byte(der)})...)
	}
	return out
}

const pemCertificate = "CERTIFICATE"

// podCertificate is a key of the pod's own, and certificates of it, in the files that are asked for.
func (v volume) podCertificate(ctx context.Context, s *corev1.PodCertificateProjection, index int, mode int32) (payload, error) {
	for _, p := range []string{s.CredentialBundlePath, s.KeyPath, s.CertificateChainPath} {
		if p == "" {
			continue
		}
		if err := checkPath(p); err != nil { // before anybody signs for nothing
			return nil, err
		}
	}
	credential, err := v.m.opts.Certificates.PodCertificate(ctx, objects.CertificateSource{
		Pod: v.pod, Volume: v.spec.Name, Index: index, Spec: s,
		Kept: keptFile(filepath.Join(v.m.memoryDir(string(v.pod.UID)), dirCertificates, fmt.Sprintf("%s.%d", v.spec.Name, index))),
	})
	if err != nil {
		return nil, refusedIfNotServed("podCertificate", err)
	}
	files := payload{}
	for _, f := range []struct {
		path string
		data []byte
	}{
		{s.CredentialBundlePath, slices.Concat(credential.Key, credential.Chain)},
		{s.KeyPath, credential.Key},
		{s.CertificateChainPath, credential.Chain},
	} {
		if f.path != "" {
			files[f.path] = v.owned(f.data, mode)
		}
	}
	return files, nil
}

// keptFile is an objects.Kept: a file that only root may read, among the pod's secrets.
type keptFile string

var _ objects.Kept = keptFile("")

// Load implements objects.Kept.
func (k keptFile) Load() ([]byte, error) {
	data, err := os.ReadFile(string(k))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// Save implements objects.Kept.
func (k keptFile) Save(state []byte) error {
	if err := os.MkdirAll(filepath.Dir(string(k)), 0o750); err != nil {
		return err
	}
	next := string(k) + ".new" // no source is named so: they end in their number
	if err := os.WriteFile(next, state, 0o600); err != nil {
		return err
	}
	return os.Rename(next, string(k))
}
