// Package logstream is the contract between the agent, which makes one stream
// directory per container attempt, and the log writer, which empties it. It owns
// the names and the wire form only: standard library, nothing that blocks.
//
// A stream directory lies below paths.Layout.LogStreams and holds stream.json and
// the FIFOs stdout and stderr. It appears complete, by a rename from a dot name,
// and it vanishes, by a rename to a dot name, once the last writer has gone and
// every byte is in the log file. A file beside it, named as the directory plus
// EndedSuffix, says that the attempt is over even if nobody ever wrote.
package logstream

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Names inside a stream directory, and around it.
const (
	ConfigFile = "stream.json"
	StdoutFIFO = "stdout"
	StderrFIFO = "stderr"

	// OpenMark is a file that the log writer makes in the directory once it holds the
	// FIFOs: from then on nothing that is written is lost, however soon the container ends.
	OpenMark = "open"

	// EndedSuffix marks, beside the directory, that the attempt is over.
	EndedSuffix = ".ended"
	// NewPrefix is the dot name while the agent makes a directory, DonePrefix the one
	// while the log writer removes it.
	NewPrefix  = ".new."
	DonePrefix = ".done."
)

// Sizes that apply where a Stream says 0. A million lines of 120 bytes fit into
// DefaultMaxFiles files of DefaultMaxSize; a container can fill no more disk than that.
const (
	DefaultMaxSize  = 32 << 20
	DefaultMaxFiles = 5
)

// CompleteMode is the log file's mode once nothing will be added to it any more;
// while it may grow it has LogMode. Readers that follow end by it.
const (
	LogMode      os.FileMode = 0o640
	CompleteMode os.FileMode = 0o440
)

// Stream says where one attempt's output goes.
type Stream struct {
	// LogFile is the CRI log file (paths.Layout.ContainerLog).
	LogFile string `json:"logFile"`
	// Unit is the attempt's unit, for the journal's copy.
	Unit         string `json:"unit"`
	PodNamespace string `json:"podNamespace"`
	PodName      string `json:"podName"`
	PodUID       string `json:"podUID"`
	Container    string `json:"container"`
	Attempt      int    `json:"attempt"`
	// MaxSize is the size in bytes at which the log file is rotated, MaxFiles how many
	// files are kept, the current one included. 0 means the default.
	MaxSize  int64 `json:"maxSize,omitempty"`
	MaxFiles int   `json:"maxFiles,omitempty"`
	// TTY says that the output comes from a pseudo-terminal, whose master the launcher hands
	// over: it goes through the stdout FIFO, and stderr stays silent.
	TTY bool `json:"tty,omitempty"`
	// Stdin says that attached clients may send input; with StdinOnce, and no terminal, the
	// container's stdin is closed when the first of them ends its input.
	Stdin     bool `json:"stdin,omitempty"`
	StdinOnce bool `json:"stdinOnce,omitempty"`
}

// Limits returns MaxSize and MaxFiles with the defaults filled in.
func (s Stream) Limits() (maxSize int64, maxFiles int) {
	maxSize, maxFiles = s.MaxSize, s.MaxFiles
	if maxSize <= 0 {
		maxSize = DefaultMaxSize
	}
	if maxFiles <= 0 {
		maxFiles = DefaultMaxFiles
	}
	return maxSize, maxFiles
}

// Validate says what makes the stream unusable.
func (s Stream) Validate() error {
	switch {
	case !filepath.IsAbs(s.LogFile):
		return fmt.Errorf("log file %q is not an absolute path", s.LogFile)
	case s.PodUID == "" || s.Container == "":
		return errors.New("pod UID or container is missing")
	case strings.ContainsAny(s.PodUID+s.Container, "/\x00\n"), s.PodUID[0] == '.':
		return fmt.Errorf("pod UID %q or container %q cannot be a file name", s.PodUID, s.Container)
	case s.Attempt < 0:
		return fmt.Errorf("attempt %d is negative", s.Attempt)
	}
	return nil
}

// Save writes stream.json into dir.
func Save(dir string, s Stream) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode stream: %w", err)
	}
	return os.WriteFile(filepath.Join(dir, ConfigFile), data, 0o600)
}

// Load reads and validates the stream.json of dir.
func Load(dir string) (Stream, error) {
	var s Stream
	path := filepath.Join(dir, ConfigFile)
	data, err := os.ReadFile(path)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(data, &s); err != nil {
		return s, fmt.Errorf("decode %s: %w", path, err)
	}
	if err := s.Validate(); err != nil {
		return s, fmt.Errorf("check %s: %w", path, err)
	}
	return s, nil
}
