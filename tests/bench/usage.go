package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// usage is processor time by program. Under ended is that of the processes that a machine's
// systemd has waited for, and under elsewhere what is nobody's whom we ask for: kernel threads,
// interrupts, and what else the host does.
type usage map[string]time.Duration

const (
	ended     = "ended on the node"
	elsewhere = "kernel and others"
	// tick is USER_HZ, in which the kernel counts.
	tick = 10 * time.Millisecond
)

// process is one line of /proc/PID/stat.
type process struct {
	pid, parent   int
	threads       int
	name          string
	own, children time.Duration
}

// parseStat reads it (proc(5)); a name may have spaces and parentheses.
func parseStat(line string) (p process, err error) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return p, fmt.Errorf("process status %q has no name", line)
	}
	p.name = line[open+1 : end]
	fields := strings.Fields(line[end+1:])
	if len(fields) < 18 {
		return p, fmt.Errorf("process status %q is too short", line)
	}
	var numbers [7]int
	for i, text := range []string{strings.TrimSpace(line[:open]), fields[1], fields[11], fields[12], fields[13], fields[14], fields[17]} {
		if numbers[i], err = strconv.Atoi(text); err != nil {
			return p, fmt.Errorf("process status %q: %w", line, err)
		}
	}
	p.pid, p.parent, p.threads = numbers[0], numbers[1], numbers[6]
	p.own, p.children = time.Duration(numbers[2]+numbers[3])*tick, time.Duration(numbers[4]+numbers[5])*tick
	return p, nil
}

// usageNow is what a machine, by its PID 1, and other processes have used so far.
func usageNow(leader int, others map[int]string) (usage, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, err
	}
	all := map[int]process{}
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		p, err := parseStat(string(data))
		if err != nil {
			return nil, err
		}
		if p.threads == 1 {
			p.own = max(p.own, exactly(pid(file)))
		}
		all[p.pid] = p
	}
	busy, err := busyTime()
	if err != nil {
		return nil, err
	}
	u := usage{elsewhere: busy}
	for pid, p := range all {
		name, known := others[pid]
		if !known && !below(all, pid, leader) {
			continue
		}
		if !known {
			name = p.name
		}
		u[name] += p.own
		u[elsewhere] -= p.own + p.children
		if pid == leader {
			u[ended] += p.children
		} else {
			u[name] += p.children
		}
	}
	return u, nil
}

func pid(stat string) string { return filepath.Base(filepath.Dir(stat)) }

// exactly is a thread's time without the rounding to ticks, which hides those of containers: they
// have the launcher's, some milliseconds.
func exactly(pid string) time.Duration {
	data, err := os.ReadFile("/proc/" + pid + "/schedstat")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(data), " ")
	n, err := strconv.ParseInt(first, 10, 64)
	if err != nil {
		return 0
	}
	return time.Duration(n)
}

// below says whether a process descends from another, or is it.
func below(all map[int]process, pid, ancestor int) bool {
	for ; pid > 1; pid = all[pid].parent {
		if pid == ancestor {
			return true
		}
	}
	return false
}

// busyTime is what all processors together have worked so far.
func busyTime() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks int
	for i, field := range strings.Fields(line)[1:] {
		n, err := strconv.Atoi(field)
		if err != nil {
			return 0, fmt.Errorf("processor times %q: %w", line, err)
		}
		if i == 3 || i == 4 || i > 7 { // idle, waiting for disks; guests count as their hosts
			continue
		}
		ticks += n
	}
	return time.Duration(ticks) * tick, nil
}

// since is what was used after before, for each of n, the most first.
func (u usage) since(before usage, n int) string {
	type share struct {
		name string
		time time.Duration
	}
	var shares []share
	var sum time.Duration
	for name, now := range u {
		if each := (now - before[name]) / time.Duration(n); each >= tick/10 {
			shares, sum = append(shares, share{name, each}), sum+each
		}
	}
	slices.SortFunc(shares, func(a, b share) int { return int(b.time - a.time) })
	var parts []string
	for _, s := range shares {
		parts = append(parts, s.name+" "+ms(s.time))
	}
	return fmt.Sprintf("%s ms (%s)", ms(sum), strings.Join(parts, ", "))
}
