// Package progress tells a person who waits what the rig is doing and for how
// long it has. It owns lines of text with elapsed times; it must not know what
// the steps are.
package progress

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
)

// Interval is the time between two signs of life of a step that takes long.
const Interval = 10 * time.Second

// Printer writes lines that begin with the time since it was made. A nil Printer
// prints nothing. It is safe for concurrent use.
type Printer struct {
	mu    sync.Mutex
	out   io.Writer
	start time.Time
}

// New returns a Printer that writes to out; a nil out discards.
func New(out io.Writer) *Printer {
	if out == nil {
		out = io.Discard
	}
	return &Printer{out: out, start: time.Now()}
}

// Printf writes one line.
func (p *Printer) Printf(format string, args ...any) {
	if p == nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	elapsed := time.Since(p.start).Seconds()
	_, _ = fmt.Fprintf(p.out, "[%6.1fs] %s\n", elapsed, fmt.Sprintf(format, args...))
}

// Elapsed is the time since the Printer was made.
func (p *Printer) Elapsed() time.Duration {
	if p == nil {
		return 0
	}
	return time.Since(p.start)
}

// Step is one thing that takes time. End it with Done.
type Step struct {
	printer *Printer
	name    string
	start   time.Time
	stop    chan struct{}
	ended   sync.WaitGroup

	mu   sync.Mutex
	note string
}

// Step begins a step: it is silent for a second-long one and shows a line each
// Interval for a longer one.
func (p *Printer) Step(format string, args ...any) *Step {
	s := &Step{printer: p, name: fmt.Sprintf(format, args...), start: time.Now(), stop: make(chan struct{})}
	s.ended.Go(s.run)
	return s
}

// Note sets what the step's next line shows besides the time, such as a count.
func (s *Step) Note(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note = fmt.Sprintf(format, args...)
}

// Done ends the step, prints how long it took or how it failed, and returns err.
func (s *Step) Done(err error) error {
	close(s.stop)
	s.ended.Wait()
	if err != nil {
		s.printer.Printf("%s: FAILED after %s: %v", s.name, took(s.start), err)
		return err
	}
	s.printer.Printf("%s (%s)", s.name, took(s.start))
	return nil
}

func (s *Step) run() {
	first := time.NewTimer(2 * time.Second)
	defer first.Stop()
	tick := time.NewTicker(Interval)
	defer tick.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-first.C:
		case <-tick.C:
		}
		s.alive()
	}
}

func (s *Step) alive() {
	s.mu.Lock()
	note := s.note
	s.mu.Unlock()
	if note != "" {
		note = ", " + note
	}
	s.printer.Printf("%s … %s%s", s.name, took(s.start), note)
}

func took(start time.Time) time.Duration { return time.Since(start).Round(100 * time.Millisecond) }

// Write prints each line of text that others (the rig) report.
func (p *Printer) Write(text []byte) (int, error) {
	for line := range strings.Lines(string(text)) {
		p.Printf("%s", strings.TrimRight(line, "\n"))
	}
	return len(text), nil
}
