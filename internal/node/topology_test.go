package node

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestTopology(t *testing.T) {
	host := Host{Root: t.TempDir()}
	write := func(path, text string) {
		t.Helper()
		full := filepath.Join(host.Root, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(text+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("/sys/devices/system/cpu/online", "0-7")
	if cores, sockets := host.Topology(); cores != 8 || sockets != 1 {
		t.Errorf("without topology: %d cores, %d sockets", cores, sockets)
	}
	for cpu := range 8 { // two sockets, two cores each, two threads each
		dir := fmt.Sprintf("/sys/devices/system/cpu/cpu%d/topology/", cpu)
		write(dir+"physical_package_id", fmt.Sprint(cpu/4))
		write(dir+"core_id", fmt.Sprint(cpu/2%2))
	}
	if cores, sockets := host.Topology(); cores != 4 || sockets != 2 {
		t.Errorf("%d cores, %d sockets; want 4, 2", cores, sockets)
	}
}
