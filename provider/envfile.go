package provider

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/provider/podplan"
)

// maxEnvFile bounds a file of variables, in bytes: what does not fit into a process's
// environment is of no use.
const maxEnvFile = 2 << 20

// fileKey reads a variable from a file in a volume of the pod (KEP-3721). As with a kubelet a
// variable that is empty is missing.
func fileKey(volumes map[string]podplan.Volume, ref *corev1.FileKeySelector) (value string, ok bool, err error) {
	volume, ok := volumes[ref.VolumeName]
	if !ok || volume.Path == "" || volume.Device != nil {
		return "", false, fmt.Errorf("cannot find the volume %q referenced by FileKeyRef", ref.VolumeName)
	}
	value, err = readEnvFile(volume.Path, ref.Path, ref.Key)
	if err != nil {
		return "", false, fmt.Errorf("couldn't parse env file: %w", err)
	}
	if value == "" && (ref.Optional == nil || !*ref.Optional) {
		return "", false, fmt.Errorf("environment variable key %q not found in file %q", ref.Key, ref.Path)
	}
	return value, value != "", nil
}

// readEnvFile reads a file that containers have made: no link of theirs leads out of the
// volume, and nothing else than a file is read.
func readEnvFile(volume, name, key string) (string, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return "", err
	}
	defer root.Close()
	file, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer file.Close()
	info, err := file.Stat()
	switch {
	case err != nil:
		return "", err
	case !info.Mode().IsRegular():
		return "", fmt.Errorf("%s is not a file", name)
	case info.Size() > maxEnvFile:
		return "", fmt.Errorf("%s is larger than %d bytes", name, maxEnvFile)
	}
	return envFileValue(io.LimitReader(file, maxEnvFile), key)
}

// envFileValue finds a variable in a file of lines NAME='value'. It takes what a kubelet takes
// (pkg/kubelet/util/env): values are quoted by single quotes, may be of several lines, and nothing
// in them is special; a blank after the equals sign makes the value empty; comments begin with
// #. What follows the variable is not looked at.
func envFileValue(r io.Reader, key string) (string, error) {
	lines := bufio.NewScanner(r)
	number := 0
	next := func() bool {
		number++
		return lines.Scan()
	}
	for next() {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, err := cutVariable(line)
		if err != nil {
			return "", fmt.Errorf("line %d: %w", number, err)
		}
		value := ""
		if rest == "" || rest[0] != ' ' && rest[0] != '\t' {
			if value, err = quoted(rest, lines, next); err != nil {
				return "", fmt.Errorf("line %d: %w", number, err)
			}
		}
		if name == key {
			return value, nil
		}
	}
	return "", lines.Err()
}

func cutVariable(line string) (name, rest string, err error) {
	name, rest, found := strings.Cut(line, "=")
	switch {
	case !found:
		return "", "", errors.New("missing '='")
	case strings.TrimRight(name, " \t") == "":
		return "", "", errors.New("empty variable name")
	case strings.TrimRight(name, " \t") != name:
		return "", "", errors.New("whitespace before '=' is not allowed")
	}
	return name, rest, nil
}

// quoted reads a value up to its closing quote, on whichever line that is.
func quoted(rest string, lines *bufio.Scanner, next func() bool) (string, error) {
	rest, ok := strings.CutPrefix(rest, "'")
	if !ok {
		return "", errors.New("value must be enclosed in single quotes")
	}
	var value strings.Builder
	for {
		part, after, closed := strings.Cut(rest, "'")
		value.WriteString(part)
		if closed {
			if after = strings.TrimLeft(after, " \t"); after != "" && after[0] != '#' {
				return "", errors.New("unexpected content after closing quote")
			}
			return value.String(), nil
		}
		value.WriteByte('\n')
		if !next() {
			return "", errors.Join(errors.New("unclosed single quote"), lines.Err())
		}
		rest = lines.Text()
	}
}
