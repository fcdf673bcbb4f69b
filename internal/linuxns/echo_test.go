package linuxns

import (
	"os"
	"testing"
)

// TestSilenceEnds: nothing is remembered of a namespace that nobody listens or speaks in.
func TestSilenceEnds(t *testing.T) {
	f, err := os.Open(t.TempDir()) // stands for a namespace: only its inode counts
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.Fd())
	id, err := idOf(fd)
	if err != nil {
		t.Fatal(err)
	}
	known := func() []uint32 {
		echoes.mu.Lock()
		defer echoes.mu.Unlock()
		if s := echoes.spaces[id]; s != nil {
			return s.ports
		}
		return nil
	}
	Silence(fd, 7)
	Silence(fd, 8)
	Unsilence(fd, 7)
	if got := known(); len(got) != 1 || got[0] != 8 {
		t.Errorf("ports %v, want 8", got)
	}
	Unsilence(fd, 8)
	Unsilence(fd, 8)
	if got := known(); got != nil {
		t.Errorf("ports %v of nobody", got)
	}
	echoes.mu.Lock()
	defer echoes.mu.Unlock()
	if _, there := echoes.spaces[id]; there {
		t.Error("an empty namespace is remembered")
	}
}

// TestDropPorts: however many ports there are, no jump is too long for a program.
func TestDropPorts(t *testing.T) {
	for _, n := range []int{0, 1, 5, 1000} {
		program := dropPorts(make([]uint32, n))
		for i, op := range program {
			if target := i + 1 + int(op.Jt); op.Jt != 0 && target != len(program)-1 {
				t.Errorf("%d ports: instruction %d jumps to %d of %d", n, i, target, len(program))
			}
		}
	}
}
