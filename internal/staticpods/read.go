package staticpods

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/vk-metal/vk-metal/internal/poddefaults"
)

// Annotations of static and mirror pods (k8s.io/kubernetes/pkg/kubelet/types).
const (
	AnnotationSource = "kubernetes.io/config.source"
	AnnotationSeen   = "kubernetes.io/config.seen"
	AnnotationHash   = "kubernetes.io/config.hash"
	AnnotationMirror = corev1.MirrorPodAnnotationKey
	sourceFile       = "file"
)

// Set is what the directory asks for.
type Set struct {
	Pods []*corev1.Pod
	// Complete says that every manifest could be read. While it is false, pods of which no
	// manifest is known may belong to one that could not.
	Complete bool
}

// maxManifest bounds a file, as an API server bounds a request.
const maxManifest = 3 << 20

// IsUID says whether a UID is one of a static pod: the API server's have hyphens.
func IsUID(uid types.UID) bool {
	if len(uid) != 32 {
		return false
	}
	_, err := hex.DecodeString(string(uid))
	return err == nil
}

// reader remembers what was read of each file: a file that goes bad keeps its pod.
type reader struct {
	dir, node string
	good      map[string]entry // by path
}

type entry struct {
	data [sha256.Size]byte
	pod  *corev1.Pod
}

// read reads the whole directory. Errors are of single files, but for the last resort of
// a directory that cannot be listed.
func (r *reader) read(now time.Time) (Set, []error) {
	set := Set{Complete: true}
	entries, err := os.ReadDir(r.dir)
	if errors.Is(err, fs.ErrNotExist) {
		r.good = map[string]entry{}
		return set, nil
	}
	if err != nil {
		set.Complete = false
		for _, e := range r.good {
			set.Pods = append(set.Pods, e.pod)
		}
		return set, []error{fmt.Errorf("read static pods: %w", err)}
	}
	var errs []error
	kept, taken := map[string]entry{}, map[string]string{}
	for _, e := range entries {
		path := filepath.Join(r.dir, e.Name())
		if strings.HasPrefix(e.Name(), ".") || !isFile(path) {
			continue
		}
		now, err := r.file(path, now)
		if err != nil {
			errs = append(errs, err)
			set.Complete = false
		}
		if now.pod == nil {
			continue
		}
		kept[path] = now
		name := now.pod.Namespace + "/" + now.pod.Name
		if other, twice := taken[name]; twice {
			errs = append(errs, &ManifestError{File: path, Err: fmt.Errorf("pod %s is in %s, too; this file is passed over", name, other)})
			continue
		}
		taken[name] = path
		set.Pods = append(set.Pods, now.pod)
	}
	r.good = kept
	return set, errs
}

func isFile(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}

// file reads one manifest. With an error it returns what was good before, if anything.
func (r *reader) file(path string, now time.Time) (entry, error) {
	old := r.good[path]
	file, err := os.Open(path)
	if err != nil {
		return old, &ManifestError{File: path, Err: err}
	}
	defer file.Close()
	data, err := io.ReadAll(io.LimitReader(file, maxManifest+1))
	if err != nil {
		return old, &ManifestError{File: path, Err: err}
	}
	if len(data) > maxManifest {
		return old, &ManifestError{File: path, Err: fmt.Errorf("larger than %d MiB", maxManifest>>20)}
	}
	sum := sha256.Sum256(data)
	if old.pod != nil && sum == old.data {
		return old, nil
	}
	pod, err := decode(path, data)
	if err != nil {
		return old, err
	}
	r.name(pod, path, sum, now)
	return entry{sum, pod}, nil
}

// name makes the pod one of this node: the same manifest in the same place has the same UID.
func (r *reader) name(pod *corev1.Pod, path string, content [sha256.Size]byte, now time.Time) {
	poddefaults.Set(pod)
	pod.Name += "-" + strings.ToLower(r.node)
	pod.Spec.NodeName = r.node
	sum := sha256.Sum256([]byte(fmt.Sprintf("%s\x00%s\x00%x", r.node, path, content)))
	pod.UID = types.UID(hex.EncodeToString(sum[:16]))
	pod.Status = corev1.PodStatus{Phase: corev1.PodPending}
	if pod.Annotations == nil {
		pod.Annotations = map[string]string{}
	}
	delete(pod.Annotations, AnnotationMirror)
	pod.Annotations[AnnotationSource] = sourceFile
	pod.Annotations[AnnotationHash] = string(pod.UID)
	pod.Annotations[AnnotationSeen] = now.Format(time.RFC3339Nano)
	everything := corev1.Toleration{Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute}
	if !slices.Contains(pod.Spec.Tolerations, everything) {
		pod.Spec.Tolerations = append(pod.Spec.Tolerations, everything)
	}
}
