package staticpods

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

const good = `apiVersion: v1
kind: Pod
metadata:
  name: web
spec:
  containers:
  - name: app
    image: example.com/app:1
    livenessProbe:
      httpGet: {port: 80}
`

func TestPodOfAManifest(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	write(t, path, good)
	r := &reader{dir: dir, node: "Metal-0"}
	set, errs := r.read(time.Now())
	if len(errs) > 0 || len(set.Pods) != 1 || !set.Complete {
		t.Fatalf("%+v %v", set, errs)
	}
	pod := set.Pods[0]
	if pod.Name != "web-metal-0" || pod.Namespace != "default" || pod.Spec.NodeName != "Metal-0" || !IsUID(pod.UID) {
		t.Errorf("named %s/%s on %s, %s", pod.Namespace, pod.Name, pod.Spec.NodeName, pod.UID)
	}
	if pod.Annotations[AnnotationSource] != "file" || pod.Annotations[AnnotationHash] != string(pod.UID) || len(pod.Spec.Tolerations) != 1 {
		t.Errorf("%v %v", pod.Annotations, pod.Spec.Tolerations)
	}
	if probe := pod.Spec.Containers[0].LivenessProbe; probe.PeriodSeconds != 10 || probe.HTTPGet.Path != "/" {
		t.Errorf("no defaults: %+v", probe)
	}
	other := &reader{dir: dir, node: "Metal-0"}
	again, _ := other.read(time.Now())
	if again.Pods[0].UID != pod.UID {
		t.Error("the same manifest has two UIDs")
	}
	write(t, path, strings.Replace(good, "app:1", "app:2", 1))
	if changed, _ := r.read(time.Now()); changed.Pods[0].UID == pod.UID {
		t.Error("another manifest has the same UID")
	}
}

// write puts a whole file in place: a slow writer's half may be read as well.
func write(t *testing.T, path, text string) {
	t.Helper()
	half := filepath.Join(filepath.Dir(path), ".half")
	if err := errors.Join(os.WriteFile(half, []byte(text), 0o600), os.Rename(half, path)); err != nil {
		t.Fatal(err)
	}
}

func TestIsUID(t *testing.T) {
	for uid, want := range map[types.UID]bool{
		"0123456789abcdef0123456789abcdef": true, "01234567-89ab-cdef-0123-456789abcdef": false, "0123456789abcdef0123456789abcdeg": false, "": false,
	} {
		if IsUID(uid) != want {
			t.Errorf("IsUID(%q) = %t", uid, !want)
		}
	}
}

func TestMistakesNameTheirLine(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"not YAML":          {"spec:", "spec: [", "m.yaml:6: not YAML"},
		"unknown field":     {"    image:", "    imag:", "m.yaml:8: unknown field \"spec.containers[0].imag\""},
		"wrong type":        {"{port: 80}", "{port: 80}\n    ports: x", "m.yaml:11: json: cannot unmarshal"},
		"given twice":       {"    image:", "    name: b\n    image:", "m.yaml:8: "},
		"two documents":     {"apiVersion: v1\n", "a: b\n---\napiVersion: v1\n", "more than one YAML document"},
		"not a pod":         {"kind: Pod", "kind: Deployment", "m.yaml:2: kind: it is a \"Deployment\""},
		"no name":           {"  name: web", "  labels: {}", "m.yaml:3: metadata.name"},
		"bad name":          {"name: web", "name: We_b", "m.yaml:4: metadata.name: \"We_b\""},
		"no image":          {"example.com/app:1", "''", "m.yaml:8: spec.containers[0].image: container app needs an image"},
		"hostile container": {"- name: app", "- name: ../../app", "m.yaml:7: spec.containers[0].name"},
		"hostile namespace": {"  name: web", "  name: web\n  namespace: ../x", "m.yaml:5: metadata.namespace"},
		"service account":   {"spec:", "spec:\n  serviceAccountName: x", "m.yaml:6: spec.serviceAccountName: refers to objects of the API"},
		"secret volume":     {"spec:", "spec:\n  volumes:\n  - name: s\n    secret: {secretName: s}", "m.yaml:7: spec.volumes[0]: volume \"s\" refers"},
		"config map in env": {"    livenessProbe:", "    env:\n    - name: A\n      valueFrom: {configMapKeyRef: {name: a, key: b}}\n    livenessProbe:", "m.yaml:10: spec.containers[0].env[0]: A refers"},
		"unknown volume":    {"    livenessProbe:", "    volumeMounts:\n    - {name: x, mountPath: /x}\n    livenessProbe:", "m.yaml:10: spec.containers[0].volumeMounts[0]: there is no volume"},
		"placed elsewhere":  {"spec:", "spec:\n  nodeName: other", "m.yaml:6: spec.nodeName"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(good, tc.old) {
				t.Fatal("the case changes nothing")
			}
			_, err := decode("m.yaml", []byte(strings.Replace(good, tc.old, tc.new, 1)))
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v\nwant ...%s...", err, tc.want)
			}
		})
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("{}"))
	f.Add([]byte("a: [\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		pod, err := decode("m.yaml", data)
		if (pod == nil) == (err == nil) {
			t.Errorf("pod %v, error %v", pod, err)
		}
	})
}

func TestBadFileKeepsItsPod(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "web.yaml")
	write(t, path, good)
	r := &reader{dir: dir, node: "n"}
	before, _ := r.read(time.Now())
	write(t, path, "nonsense: [")
	write(t, filepath.Join(dir, ".hidden"), "nonsense: [")
	set, errs := r.read(time.Now())
	if len(errs) != 1 || set.Complete || len(set.Pods) != 1 || set.Pods[0].UID != before.Pods[0].UID {
		t.Errorf("%+v %v", set, errs)
	}
	fresh := &reader{dir: dir, node: "n"}
	if set, _ := fresh.read(time.Now()); set.Complete || len(set.Pods) != 0 {
		t.Errorf("an agent that never saw it good: %+v", set)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if set, errs := r.read(time.Now()); len(set.Pods) != 0 || !set.Complete || len(errs) != 0 {
		t.Errorf("removed: %+v %v", set, errs)
	}
}

func TestSecondFileOfOneNameIsPassedOver(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "a.yaml"), good)
	write(t, filepath.Join(dir, "b.yaml"), strings.Replace(good, "app:1", "app:2", 1))
	set, errs := (&reader{dir: dir, node: "n"}).read(time.Now())
	if len(set.Pods) != 1 || len(errs) != 1 || !strings.Contains(errs[0].Error(), "b.yaml: pod default/web-n is in") {
		t.Errorf("%d pods, %v", len(set.Pods), errs)
	}
}

func TestRunFollowsTheDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "made", "by", "us")
	sets, mistakes := make(chan Set), make(chan error, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		done <- Run(ctx, Options{
			Dir: dir, Node: "n", Log: slog.New(slog.DiscardHandler), Invalid: func(err error) { mistakes <- err },
			Changed: func(s Set) {
				select {
				case sets <- s:
				case <-ctx.Done():
				}
			},
		})
	}()
	await := func(what string, holds func(Set) bool) {
		t.Helper()
		timeout := time.After(time.Minute)
		for {
			select {
			case s := <-sets:
				if holds(s) {
					return
				}
			case <-timeout:
				t.Fatal("never seen: " + what)
			}
		}
	}
	await("nothing", func(s Set) bool { return len(s.Pods) == 0 && s.Complete })
	write(t, filepath.Join(dir, "web.yaml"), good)
	await("a pod", func(s Set) bool { return len(s.Pods) == 1 })
	write(t, filepath.Join(dir, "bad.yaml"), "nonsense")
	await("a bad file", func(s Set) bool { return !s.Complete })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	await("an empty directory again", func(s Set) bool {
		_, err := os.Stat(dir) // not yet, if it was read while it was being removed
		return err == nil && len(s.Pods) == 0 && s.Complete
	})
	write(t, filepath.Join(dir, "web.yaml"), good)
	await("a pod again", func(s Set) bool { return len(s.Pods) == 1 })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(mistakes) != 1 {
		t.Errorf("%d mistakes told, want 1", len(mistakes))
	}
}
