package conformance

import (
	"encoding/xml"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// The elements of a JUnit report that its readers agree on.
type (
	junitSuite struct {
		XMLName  xml.Name    `xml:"testsuite"`
		Name     string      `xml:"name,attr"`
		Tests    int         `xml:"tests,attr"`
		Failures int         `xml:"failures,attr"`
		Skipped  int         `xml:"skipped,attr"`
		Seconds  string      `xml:"time,attr"`
		Cases    []junitCase `xml:"testcase"`
	}
	junitCase struct {
		Name    string        `xml:"name,attr"`
		Class   string        `xml:"classname,attr"`
		Seconds string        `xml:"time,attr"`
		Failure *junitMessage `xml:"failure"`
		Skipped *junitMessage `xml:"skipped"`
	}
	junitMessage struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
)

// JUnit is the file with the JUnit report of a finished run.
func (r *Run) JUnit() string { return filepath.Join(r.Dir, "junit.xml") }

// writeJUnit writes all results of the run, also those of its earlier parts.
func (r *Run) writeJUnit() error {
	summary := r.Summarize()
	suite := junitSuite{Name: suiteName, Failures: summary.Failed + summary.Missing, Skipped: summary.Skipped}
	var seconds float64
	for _, name := range r.Plan.Tests {
		result := r.outcome(name)
		seconds += result.Seconds
		suite.Cases = append(suite.Cases, junitOf(result))
	}
	for _, skipped := range summary.Skips {
		if _, planned := r.Plan.Skips[skipped.Name]; planned {
			suite.Cases = append(suite.Cases, junitOf(skipped))
		}
	}
	suite.Tests, suite.Seconds = len(suite.Cases), fmt.Sprintf("%.3f", seconds)
	data, err := xml.MarshalIndent(suite, "", " ")
	if err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	if err := os.WriteFile(r.JUnit(), append([]byte(xml.Header), data...), 0o644); err != nil {
		return fmt.Errorf("write the JUnit report: %w", err)
	}
	return nil
}

func junitOf(result Result) junitCase {
	one := junitCase{Name: result.Name, Class: "sig-" + SIG(result.Name), Seconds: fmt.Sprintf("%.3f", result.Seconds)}
	message := &junitMessage{Message: firstLine(result.Message), Text: strings.ToValidUTF8(result.Message+"\n"+result.Location, "?")}
	switch result.State {
	case Failed, Missing:
		one.Failure = message
	case Skipped:
		one.Skipped = message
	}
	return one
}
