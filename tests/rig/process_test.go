package rig

import (
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

func TestProcesses(t *testing.T) {
	r := newRig(t, Config{})
	ctx := testContext(t, 3*time.Minute)
	e, err := r.AddEndpoint(ctx, "service", "")
	if err != nil {
		t.Fatal(err)
	}
	start := func(name, script string) *Process {
		t.Helper()
		p, err := r.StartProcess(ctx, ProcessSpec{Name: name, Endpoint: e.Name, Argv: []string{"sh", "-c", script}})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("where it runs", func(t *testing.T) {
		p := start("where", "ip -br addr show eth0; pwd; env | sort; cat /proc/self/cgroup; exec sleep 1000")
		waitUntil(t, "its output", func() bool { return strings.Contains(readTestFile(t, p.LogPath), "/process-where") })
		log := readTestFile(t, p.LogPath)
		for _, want := range []string{e.V4.String() + "/24", e.V6.String() + "/64", r.Dir() + "\n", "HOME=/root", "/" + r.ID() + "/process-where"} {
			if !strings.Contains(log, want) {
				t.Errorf("log lacks %q:\n%s", want, log)
			}
		}
		if _, err := r.StartProcess(ctx, ProcessSpec{Name: "where", Argv: []string{"true"}}); !errors.Is(err, ErrRunning) {
			t.Errorf("StartProcess() of a running one: %v", err)
		}
		stop(t, p)
		again := start("where", "echo again; exec sleep 1000")
		waitUntil(t, "its output", func() bool { return strings.Contains(readTestFile(t, p.LogPath), "again") })
		if p.Running() || !again.Running() {
			t.Error("a replaced process counts as the new one")
		}
	})
	t.Run("all it started goes with it", func(t *testing.T) {
		p := start("family", "trap '' TERM; setsid sh -c 'trap \"\" TERM; sleep 1000' & setsid sleep 1001 & echo ready; while :; do wait; done")
		waitUntil(t, "its output", func() bool { return strings.Contains(readTestFile(t, p.LogPath), "ready") })
		began := time.Now()
		if err := p.Stop(ctx, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(began); took < 100*time.Millisecond || took > time.Minute {
			t.Errorf("Stop() of a deaf process took %s with a grace of 100ms", took)
		}
		hs, err := hierarchies()
		if err != nil {
			t.Fatal(err)
		}
		for _, h := range hs {
			if _, err := os.Stat(h.mount + "/" + r.ID() + "/process-family"); err == nil {
				t.Errorf("cgroup is left in %s", h.mount)
			}
		}
	})
	t.Run("a program that is not there", func(t *testing.T) {
		_, err := r.StartProcess(ctx, ProcessSpec{Name: "missing", Argv: []string{"/no/such"}})
		if !errors.Is(err, os.ErrNotExist) {
			t.Errorf("StartProcess() = %v", err)
		}
		if err := os.WriteFile(r.Dir()+"/broken", []byte("#!/no/such/interpreter\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		if _, err := r.StartProcess(ctx, ProcessSpec{Name: "broken", Argv: []string{r.Dir() + "/broken"}}); err == nil {
			t.Error("StartProcess() of a program that cannot be executed succeeds")
		}
	})
}

// stop stops a process and checks that it has gone.
func stop(t *testing.T, p *Process) {
	t.Helper()
	if err := p.Stop(testContext(t, 3*time.Minute), 10*time.Second); err != nil {
		t.Fatal(err)
	}
	if p.Running() {
		t.Errorf("process %s runs after Stop()", p.Name)
	}
}

func readTestFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
