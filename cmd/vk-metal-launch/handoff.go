//go:build linux

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// handoff is what the launcher makes ready for a child that is born in a user namespace: it
// has no rights over the host's files there, not even over its own spec's.
type handoff struct {
	Spec *launchspec.Spec `json:"spec"`

	// Descriptors of mounts that nobody sees yet: the root, /dev, and those of Spec.Mounts.
	Root    int             `json:"root"`
	Dev     int             `json:"dev"`
	Sources []handoffSource `json:"sources,omitempty"`
	// Streams are stdin, stdout and stderr; -1 for none.
	Streams [3]int `json:"streams"`

	// Process, TTY and Args are exec's.
	Process launchspec.Process `json:"process"`
	TTY     bool               `json:"tty,omitempty"`
	Args    [][]byte           `json:"args,omitempty"`
}

// handoffSource is a source on its way.
type handoffSource struct {
	Tree int    `json:"tree"`
	Path string `json:"path,omitempty"`
	File bool   `json:"file,omitempty"`
}

// handoffArg stands for the path of a spec, handoffFD is where the handoff lies then.
const (
	handoffArg = "@"
	handoffFD  = 5
)

// stage is what a child works with: its spec, what was made ready for it (nil outside of user
// namespaces), and a directory to mount on.
type stage struct {
	spec    *launchspec.Spec
	ready   *handoff
	scratch string
}

// pack writes the handoff where the child will find it.
func (h *handoff) pack() (int, error) {
	fd, err := unix.MemfdCreate("handoff", unix.MFD_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("make handoff: %w", err)
	}
	data, err := json.Marshal(h)
	if err != nil {
		return -1, fmt.Errorf("encode handoff: %w", err)
	}
	for done := 0; done < len(data); {
		n, err := unix.Pwrite(fd, data[done:], int64(done))
		if err != nil {
			return -1, fmt.Errorf("write handoff: %w", err)
		}
		done += n
	}
	return highFD(fd)
}

// unpack reads it. Nothing of it is left open.
func unpack() (*handoff, error) {
	file := os.NewFile(handoffFD, "handoff")
	defer file.Close()
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read handoff: %w", err)
	}
	h := new(handoff)
	if err := json.Unmarshal(data, h); err != nil {
		return nil, fmt.Errorf("parse handoff: %w", err)
	}
	if h.Spec == nil {
		return nil, errors.New("handoff has no spec")
	}
	return h, checkSpec(h.Spec)
}

// highFD moves a descriptor out of the way of those that have fixed numbers.
func highFD(fd int) (int, error) { return moveFD(fd, unix.F_DUPFD_CLOEXEC) }

// inheritable moves a descriptor there and has the child inherit it under that number.
func inheritable(fd int) (int, error) { return moveFD(fd, unix.F_DUPFD) }

func moveFD(fd, how int) (int, error) {
	high, err := unix.FcntlInt(uintptr(fd), how, firstHeld)
	unix.Close(fd)
	if err != nil {
		return -1, fmt.Errorf("hold descriptor: %w", err)
	}
	return high, nil
}

// give makes all descriptors of the handoff inheritable.
func (h *handoff) give() (err error) {
	fds := []*int{&h.Root, &h.Dev, &h.Streams[0], &h.Streams[1], &h.Streams[2]}
	for i := range h.Sources {
		fds = append(fds, &h.Sources[i].Tree)
	}
	for _, fd := range fds {
		if *fd < 0 {
			continue
		}
		if *fd, err = inheritable(*fd); err != nil {
			return err
		}
	}
	return nil
}

func (h *handoff) sources() []source {
	out := make([]source, len(h.Sources))
	for i, s := range h.Sources {
		out[i] = source{tree: s.Tree, path: s.Path, file: s.File, done: true}
	}
	return out
}

// loadStage reads what the second stage is to do.
func loadStage(arg string) (*stage, error) {
	if arg == handoffArg {
		h, err := unpack()
		if err != nil {
			return nil, err
		}
		return &stage{spec: h.Spec, ready: h, scratch: userScratch}, nil
	}
	spec, err := loadSpec(arg)
	if err != nil {
		return nil, err
	}
	return &stage{spec: spec, scratch: scratchOf(arg)}, nil
}
