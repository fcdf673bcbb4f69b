package devices

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	deviceapi "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// cdiSpec writes a specification of the vendor's devices.
func (w *world) cdiSpec(file, text string) {
	w.t.Helper()
	path := filepath.Join(w.layout.Lib, file)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

const cdiDevices = `
cdiVersion: 0.7.0
kind: example.com/gpu
devices:
- name: "0"
  containerEdits:
    env: ["GPU=0", "MODEL=a=b"]
    deviceNodes: [{path: /dev/gpu0, hostPath: /dev/null, permissions: rw, fileMode: 416, gid: 44}]
- name: "1"
  containerEdits:
    deviceNodes: [{path: /dev/gpu1, hostPath: /dev/zero}]
- name: hooked
  containerEdits:
    hooks: [{hookName: createContainer, path: /bin/hook, args: [hook, --now], env: [A=b], timeout: 7}]
- name: runtime
  containerEdits:
    hooks: [{hookName: createRuntime, path: /bin/hook}]
- name: remounted
  containerEdits:
    mounts: [{hostPath: /lib, containerPath: /lib/gpu, options: [shared]}]
containerEdits:
  env: ["DRIVER=1"]
  mounts: [{hostPath: /usr/lib, containerPath: /usr/lib/gpu, options: [ro, nosuid, nodev, rbind]}]
  additionalGids: [44]
`

// TestCDIDevices: what the specifications say of a plugin's devices is in the container.
func TestCDIDevices(t *testing.T) {
	w := newWorld(t)
	w.cdiSpec("cdi/gpu.yaml", cdiDevices)
	p, _ := w.plugin(&deviceapi.DevicePluginOptions{}, healthy("a", "b")...)
	p.cdi = []string{"example.com/gpu=0", "example.com/gpu=1", "example.com/gpu=hooked"}
	w.allocate(pod("1", container("x", "1")))
	lent, err := w.m.Prepare(t.Context(), "1", "x")
	if err != nil {
		t.Fatal(err)
	}
	nodes := []Node{
		{Path: "/dev/gpu0", Major: 1, Minor: 3, Mode: 0o640, GID: 44, Permissions: "rw"},
		{Path: "/dev/gpu1", Major: 1, Minor: 5, Mode: 0o666, Permissions: "rwm"},
	}
	if !reflect.DeepEqual(lent.Nodes, nodes) || !reflect.DeepEqual(lent.Groups, []uint32{44}) {
		t.Errorf("nodes %+v, groups %v", lent.Nodes, lent.Groups)
	}
	mount := Mount{HostPath: "/usr/lib", ContainerPath: "/usr/lib/gpu", ReadOnly: true, NoSuid: true, NoDev: true}
	if last := lent.Mounts[len(lent.Mounts)-1]; last != mount || len(lent.Mounts) != 2 {
		t.Errorf("mounts %+v", lent.Mounts)
	}
	if want := []Hook{{"/bin/hook", []string{"hook", "--now"}, []string{"A=b"}, 7}}; !reflect.DeepEqual(lent.Hooks, want) {
		t.Errorf("hooks %+v", lent.Hooks)
	}
	if lent.Env["GPU"] != "0" || lent.Env["MODEL"] != "a=b" || lent.Env["DRIVER"] != "1" {
		t.Errorf("environment %v", lent.Env)
	}
	w.cdiSpec("cdi-run/gpu.yaml", "cdiVersion: 0.7.0\nkind: example.com/gpu\ndevices: [{name: '0', containerEdits: {env: [GPU=new]}}, {name: '1', containerEdits: {env: [X=y]}}, {name: hooked, containerEdits: {env: [X=y]}}]\n")
	if lent, err := w.m.Prepare(t.Context(), "1", "x"); err != nil || lent.Env["GPU"] != "new" {
		t.Errorf("a specification that goes before: %v, %v", lent.Env, err)
	}
}

// TestCDIDevicesThatCannotBeHad: nothing of a device is left out in silence.
func TestCDIDevicesThatCannotBeHad(t *testing.T) {
	w := newWorld(t)
	w.cdiSpec("cdi/gpu.yaml", cdiDevices)
	w.cdiSpec("cdi/broken.yaml", "cdiVersion: nonsense")
	p, _ := w.plugin(&deviceapi.DevicePluginOptions{}, healthy("a", "b", "c")...)
	for i, c := range [][2]string{
		{"example.com/gpu=9", "find CDI devices example.com/gpu=9 in " + w.layout.Lib},
		{"example.com/gpu=9", "broken.yaml"},
		{"example.com/gpu=runtime", "has createRuntime hooks, of which this node runs createContainer ones only"},
		{"example.com/gpu=remounted", `mount /lib/gpu has option "shared"`},
		{"../../etc", "../../etc"},
	} {
		uid := string(rune('a' + i))
		p.mu.Lock()
		p.cdi = []string{c[0]}
		p.mu.Unlock()
		if err := w.m.Allocate(t.Context(), pod(uid, container("x", "1"))); err != nil {
			t.Fatal(err)
		}
		if _, err := w.m.Prepare(t.Context(), uid, "x"); err == nil || !strings.Contains(err.Error(), c[1]) {
			t.Errorf("%s: %v, want %q", c[0], err, c[1])
		}
		if err := w.m.Release(uid); err != nil {
			t.Fatal(err)
		}
	}
}
