package staticpods

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"gopkg.in/yaml.v3"
	corev1 "k8s.io/api/core/v1"
	kjson "sigs.k8s.io/json"
	kyaml "sigs.k8s.io/yaml"
)

// ManifestError is what is wrong with one file.
type ManifestError struct {
	File string
	Line int // 0 where it is not known
	Err  error
}

// Error names file and line as compilers do.
func (e *ManifestError) Error() string {
	if e.Line == 0 {
		return fmt.Sprintf("%s: %v", e.File, e.Err)
	}
	return fmt.Sprintf("%s:%d: %v", e.File, e.Line, e.Err)
}

// Unwrap returns what is wrong.
func (e *ManifestError) Unwrap() error { return e.Err }

// fieldError is a mistake in one field, such as spec.containers[0].image.
type fieldError struct {
	field string
	err   error
}

func (e *fieldError) Error() string { return e.field + ": " + e.err.Error() }

func wrong(field, format string, args ...any) error {
	return &fieldError{field, fmt.Errorf(format, args...)}
}

// decode reads one Pod of JSON or YAML, strictly.
func decode(file string, data []byte) (*corev1.Pod, error) {
	var root yaml.Node
	fail := func(line int, err error) error { return &ManifestError{File: file, Line: line, Err: err} }
	decoder := yaml.NewDecoder(strings.NewReader(string(data)))
	if err := decoder.Decode(&root); err != nil {
		return nil, fail(lineIn(err.Error()), fmt.Errorf("not YAML: %w", err))
	}
	if err := decoder.Decode(&yaml.Node{}); err == nil {
		return nil, fail(0, errors.New("more than one YAML document: a file holds one pod"))
	}
	text, err := kyaml.YAMLToJSONStrict(data)
	if err != nil {
		return nil, fail(lineIn(err.Error()), err)
	}
	pod := &corev1.Pod{}
	mistakes, err := kjson.UnmarshalStrict(text, pod)
	if err != nil {
		return nil, fail(lineOf(&root, fieldIn(err.Error())), err)
	}
	if len(mistakes) > 0 {
		return nil, fail(lineOf(&root, fieldIn(mistakes[0].Error())), errors.Join(mistakes...))
	}
	if err := check(pod); err != nil {
		field := &fieldError{}
		errors.As(err, &field)
		return nil, fail(lineOf(&root, field.field), err)
	}
	return pod, nil
}

var (
	linePattern  = regexp.MustCompile(`line (\d+)`)
	fieldPattern = regexp.MustCompile(`(?:field "|of type |Go struct field \w+\.)([\w.\[\]]+)`)
)

// lineIn finds the line that a YAML error names.
func lineIn(text string) int {
	line := 0
	if m := linePattern.FindStringSubmatch(text); m != nil {
		_, _ = fmt.Sscan(m[1], &line)
	}
	return line
}

// fieldIn finds the field that a JSON error names.
func fieldIn(text string) string {
	for _, m := range fieldPattern.FindAllStringSubmatch(text, -1) {
		if strings.Contains(m[0], "field") {
			return m[1]
		}
	}
	return ""
}

// lineOf is the line of a field; of a field that is not there, that of its parent.
func lineOf(root *yaml.Node, field string) int {
	node, line := root, 0
	if node.Kind == yaml.DocumentNode && len(node.Content) > 0 {
		node = node.Content[0]
	}
	for _, part := range strings.FieldsFunc(field, func(r rune) bool { return r == '.' || r == '[' || r == ']' }) {
		key, value := child(node, part)
		if value == nil {
			break
		}
		node, line = value, key.Line
	}
	return line
}

// child finds an element of a mapping or a sequence. Errors of decoding name no index:
// a field is looked for in all elements then.
func child(node *yaml.Node, part string) (key, value *yaml.Node) {
	switch node.Kind {
	case yaml.MappingNode:
		for i := 0; i+1 < len(node.Content); i += 2 {
			if node.Content[i].Value == part {
				return node.Content[i], node.Content[i+1]
			}
		}
	case yaml.SequenceNode:
		index := -1
		if n, err := fmt.Sscan(part, &index); n == 1 && err == nil && index >= 0 && index < len(node.Content) {
			return node.Content[index], node.Content[index]
		}
		for _, element := range node.Content {
			if key, value := child(element, part); value != nil {
				return key, value
			}
		}
	}
	return nil, nil
}
