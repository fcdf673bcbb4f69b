package conformance

import (
	"bufio"
	"io"
	"regexp"
	"strconv"
	"strings"
)

const (
	delimiter = "------------------------------"
	// longestLine bounds what is looked at of one line; results are short lines.
	longestLine = 64 << 10
)

// header is the line with which Ginkgo's verbose output begins (in parallel) or ends
// (in series) what it says of one test.
var header = regexp.MustCompile(`^(?:•|[A-Z])!? (?:\[([A-Z -]+)\] )?\[([0-9.]+) seconds\]$`)

// stream reads Ginkgo's verbose output and tells of each test as it ends: Ginkgo's own
// report comes only at the end of a run, and not at all when the host dies.
type stream struct {
	known map[string]bool
	found func(Result)

	first   bool   // the next line is the first behind a delimiter
	current string // test that runs (in series)
	pending *Result
}

// read reads all lines; it also reads on when a line is longer than it looks at.
func (s *stream) read(r io.Reader) error {
	in := bufio.NewReaderSize(r, longestLine)
	for {
		line, more, err := in.ReadLine()
		text := strings.TrimRight(string(line), " ")
		for more && err == nil {
			_, more, err = in.ReadLine()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		s.line(text)
	}
}

func (s *stream) line(line string) {
	first, pending := s.first, s.pending
	s.first, s.pending = false, nil
	if line == delimiter {
		s.first = true
		return
	}
	if pending != nil {
		if pending.Name = s.name(line); pending.Name != "" {
			s.found(*pending)
		}
		return
	}
	if match := header.FindStringSubmatch(line); match != nil && (first || s.current != "") {
		s.header(match)
		return
	}
	if name := s.name(line); first && name != "" {
		s.current = name
	}
}

// header takes a result whose name is known in series and on the next line in parallel.
func (s *stream) header(match []string) {
	result := Result{State: Passed}
	switch match[1] {
	case "":
	case "FAILED", "PANICKED", "TIMEDOUT":
		result.State = Failed
	default: // interrupted, skipped, pending: to be run again, or in the report
		s.current = ""
		return
	}
	result.Seconds, _ = strconv.ParseFloat(match[2], 64)
	if s.current == "" {
		s.pending = &result
		return
	}
	result.Name, s.current = s.current, ""
	s.found(result)
}

// failedNode is what Ginkgo adds to the name of a test that failed: the node in which.
var failedNode = regexp.MustCompile(`^TOP-LEVEL \[[^]]*\] |(?: |^)\[(?:It|(?:Just)?(?:Before|After)(?:Each|All)|DeferCleanup \((?:Each|All)\))\]( |$)`)

// name is the test that the line names: its text, then labels in brackets.
func (s *stream) name(line string) string {
	if name := s.labelled(line); name != "" {
		return name
	}
	return s.labelled(failedNode.ReplaceAllString(line, "$1"))
}

func (s *stream) labelled(line string) string {
	for line != "" {
		if s.known[line] {
			return line
		}
		cut := strings.LastIndex(line, " [")
		if cut < 0 {
			return ""
		}
		line = strings.TrimRight(line[:cut], " ")
	}
	return ""
}
