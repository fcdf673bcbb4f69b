package node

import (
	"os"
	"path/filepath"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

func TestPodLimits(t *testing.T) {
	root := t.TempDir()
	for name, content := range map[string]string{
		"proc/meminfo": "MemTotal: 4096 kB\n", "proc/loadavg": "0 0 0 1/200 7\n",
		"proc/sys/kernel/pid_max": "32768\n", "proc/sys/kernel/threads-max": "1000\n",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		memory, pids string
		bytes, tasks uint64
	}{
		{"0", "0", 4 << 20, 1000},
		{"1Mi", "100", 3 << 20, 900},
		{"5Mi", "2000", 0, 0},
	} {
		reserved := corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(test.memory), "pid": resource.MustParse(test.pids)}
		if bytes, tasks := (Host{Root: root}).PodLimits(reserved); bytes != test.bytes || tasks != test.tasks {
			t.Errorf("without %s and %s: %d bytes, %d processes", test.memory, test.pids, bytes, tasks)
		}
	}
	if bytes, tasks := (Host{Root: filepath.Join(root, "none")}).PodLimits(nil); bytes != 0 || tasks != 0 {
		t.Errorf("of what is not known: %d bytes, %d processes", bytes, tasks)
	}
}
