package volumes

import (
	"path/filepath"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// fakeLabels has one label for all that is there, and notes what is labelled.
type fakeLabels struct {
	label string
	given []string
}

func (f *fakeLabels) Label(string) (string, error) { return f.label, nil }

func (f *fakeLabels) Relabel(path, label string, recursive bool) error {
	if !recursive {
		label += ", alone"
	}
	f.given = append(f.given, filepath.Base(filepath.Dir(path))+" "+label)
	return nil
}

// TestLabelsOfRenderedFiles: files that are new in a volume get the label that the volume has, and
// before anybody sees them.
func TestLabelsOfRenderedFiles(t *testing.T) {
	needRoot(t)
	m, source := testManager(t)
	labels := &fakeLabels{}
	m.opts.Labels = labels
	source.cms["cm"] = &corev1.ConfigMap{Data: map[string]string{"a": "1"}}
	pod := testPod(configMapVolume("files", "cm"))
	mounted := prepare(t, m, pod, PodInfo{})
	if !mounted["files"].Relabel || len(labels.given) != 0 {
		t.Errorf("%+v, labelled %q: want the first container to label it", mounted["files"], labels.given)
	}
	labels.label = "l"
	source.cms["cm"] = &corev1.ConfigMap{Data: map[string]string{"a": "2"}}
	if err := m.Update(t.Context(), pod, PodInfo{}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"files l"}; !slices.Equal(labels.given, want) {
		t.Errorf("labelled %q, want %q", labels.given, want)
	}
}

// TestWhoseVolumesAreRelabelled: the host's are not.
func TestWhoseVolumesAreRelabelled(t *testing.T) {
	needRoot(t)
	m, _ := testManager(t)
	pod := testPod(
		vol("empty", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}),
		vol("host", corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: t.TempDir()}}),
	)
	mounted := prepare(t, m, pod, PodInfo{})
	if !mounted["empty"].Relabel || mounted["host"].Relabel {
		t.Errorf("%+v", mounted)
	}
}
