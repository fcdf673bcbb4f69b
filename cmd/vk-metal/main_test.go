package main

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// runCommand executes the command line without touching this machine's directories.
func runCommand(t *testing.T, stdin string, args ...string) (string, error) {
	t.Helper()
	root := newRoot()
	var out bytes.Buffer
	root.SetIn(strings.NewReader(stdin))
	root.SetOut(&out)
	root.SetErr(&out)
	root.SetArgs(args)
	err := root.ExecuteContext(t.Context())
	return out.String(), err
}

const planPod = `
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  initContainers:
  - {name: first, image: example.com/init, command: ["true"]}
  containers:
  - name: main
    image: example.com/main
    command: ["sh", "-c", "echo $(GREETING) %i"]
    env:
    - {name: GREETING, value: hello}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: s, key: k}}}
    resources: {limits: {cpu: 500m, memory: 64Mi}}
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
`

func TestPlan(t *testing.T) {
	dir := t.TempDir()
	layout := paths.Layout{Run: dir + "/run", Lib: dir + "/lib", Log: dir + "/log", Etc: dir + "/etc", Kubelet: dir + "/kubelet"}
	pod, err := parsePod("web.yaml", []byte(planPod))
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := printPlan(t.Context(), layout, nil, pod, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"pod: default/web", "qosClass: Burstable", "kubepods-burstable-pod", "- echo hello %i", `SECRET=<from`,
		"name: vkm-00000000-0000-0000-0000-000000000000-first-0.service", "then:", "/volumes/data", "memoryMax: 67108864",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the plan lacks %q:\n%s", want, out.String())
		}
	}
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("the plan made %v", left)
	}
}

func TestPlanRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"unknown field": {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {contaners: []}\n", "contaners"},
		"another kind":  {"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\n", "not a v1 Pod"},
		"no container":  {"apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n", "no container"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := runCommand(t, tc.text, "plan", "-"); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("plan = %v, want %q", err, tc.want)
			}
		})
	}
}

func TestConfigCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("apiVersion: vk-metal.io/v1alpha1\nkind: NodeConfig\nmaxPods: x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := runCommand(t, "", "config", "check", path); err == nil || !strings.Contains(err.Error(), path+":3: maxPods:") {
		t.Errorf("config check = %v", err)
	}
}

func TestJoinFlags(t *testing.T) {
	_, err := runCommand(t, "", "join", "http://a", "--token", "nonsense", "--ca-hash", "sha256:1")
	for _, want := range []string{`"http://a" is not an API server`, "bootstrap token must look like", "64 hexadecimal digits"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("join = %v, want all mistakes, %q too", err, want)
		}
	}
	if _, err := runCommand(t, "", "join", "https://a:1", "--token", "abcdef.0123456789abcdef"); err == nil || !strings.Contains(err.Error(), "--ca-hash is missing") {
		t.Errorf("join without --ca-hash = %v", err)
	}
}

func TestJournalForm(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(newJournalHandler(&out, slog.LevelInfo)).With("pod", "a/b")
	log.Error("two\nlines", "err", "x")
	log.Debug("hidden")
	log.Info("fine")
	if want := "<3>msg=\"two\\nlines\" pod=a/b err=x\n<6>msg=fine pod=a/b\n"; out.String() != want {
		t.Errorf("= %q, want %q", out.String(), want)
	}
	out.Reset()
	library := slog.New(quieter{newJournalHandler(&out, slog.LevelInfo)})
	library.Info("workings")
	library.Warn("trouble")
	if want := "<4>msg=trouble\n"; out.String() != want {
		t.Errorf("library: %q, want %q", out.String(), want)
	}
}
