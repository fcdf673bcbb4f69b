package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// decoder walks YAML nodes and collects mistakes instead of stopping at the first.
type decoder struct {
	file string
	errs Errors
}

// field is one key of a mapping and what to do with its value.
type field struct {
	key string
	set func(key string, value *yaml.Node)
}

func (d *decoder) fail(line int, key, format string, args ...any) {
	d.errs = append(d.errs, &Error{File: d.file, Line: line, Key: key, Problem: fmt.Sprintf(format, args...)})
}

// yamlLine finds the line number in yaml.v3's messages ("yaml: line 3: …").
var yamlLine = regexp.MustCompile(`^yaml: line (\d+): (.*)$`)

// document returns the root mapping of the only document in data, or nil after a mistake.
func (d *decoder) document(data []byte) *yaml.Node {
	if !utf8.Valid(data) {
		d.fail(0, "", "the file is not UTF-8 text")
		return nil
	}
	reader := yaml.NewDecoder(bytes.NewReader(data))
	var doc, more yaml.Node
	switch err := reader.Decode(&doc); {
	case errors.Is(err, io.EOF):
		d.fail(0, "", "the file is empty: start it with apiVersion: %s and kind: %s", APIVersion, Kind)
		return nil
	case err != nil:
		d.syntax(err)
		return nil
	}
	if err := reader.Decode(&more); !errors.Is(err, io.EOF) {
		d.fail(more.Line, "", "the file must hold exactly one YAML document: remove everything from the second --- on")
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		d.fail(root.Line, "", "the file must be a mapping that starts with apiVersion: %s", APIVersion)
		return nil
	}
	return root
}

func (d *decoder) syntax(err error) {
	if m := yamlLine.FindStringSubmatch(err.Error()); m != nil {
		line, _ := strconv.Atoi(m[1])
		d.fail(line, "", "not YAML: %s", m[2])
		return
	}
	d.fail(0, "", "not YAML: %s", strings.TrimPrefix(err.Error(), "yaml: "))
}

// mapping sets each field that node names; unknown and repeated keys are mistakes.
func (d *decoder) mapping(path string, node *yaml.Node, fields ...field) {
	d.pairs(path, node, func(key string, name, value *yaml.Node) {
		for _, f := range fields {
			if f.key == name.Value {
				f.set(key, value)
				return
			}
		}
		d.fail(name.Line, key, "unknown key%s", suggest(name.Value, fields))
	})
}

// pairs calls each for every key of a mapping, after the checks that hold for all.
func (d *decoder) pairs(path string, node *yaml.Node, each func(key string, name, value *yaml.Node)) {
	if isNull(node) {
		return
	}
	if node.Kind != yaml.MappingNode {
		d.fail(node.Line, path, "must be a mapping of keys to values")
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i], node.Content[i+1]
		key := join(path, name.Value)
		if name.Kind != yaml.ScalarNode {
			d.fail(name.Line, path, "keys must be plain words")
			continue
		}
		if first, twice := seen[name.Value]; twice {
			d.fail(name.Line, key, "given twice, first in line %d: keep one", first)
			continue
		}
		seen[name.Value] = name.Line
		if value.Kind == yaml.AliasNode || value.Anchor != "" {
			d.fail(value.Line, key, "anchors and aliases are not supported: write the value out")
			continue
		}
		each(key, name, value)
	}
}

// items calls each for every element of a list of scalars.
func (d *decoder) items(key string, node *yaml.Node, each func(item *yaml.Node)) {
	if isNull(node) {
		return
	}
	if node.Kind != yaml.SequenceNode {
		d.fail(node.Line, key, "must be a list, one \"- value\" per line")
		return
	}
	for _, item := range node.Content {
		if item.Kind == yaml.AliasNode || item.Anchor != "" {
			d.fail(item.Line, key, "anchors and aliases are not supported: write the value out")
			continue
		}
		each(item)
	}
}

// scalar returns the text of a scalar that is not null.
func (d *decoder) scalar(key string, node *yaml.Node) (string, bool) {
	if node.Kind != yaml.ScalarNode {
		d.fail(node.Line, key, "must be a single value")
		return "", false
	}
	return node.Value, true
}

// parsed makes a setter of a parser of text; null and mistakes leave dst as it is.
func parsed[T any](d *decoder, name string, dst *T, parse func(string) (T, error)) field {
	return field{name, func(key string, node *yaml.Node) {
		if isNull(node) {
			return
		}
		if v, ok := parseNode(d, key, node, parse); ok {
			*dst = v
		}
	}}
}

// listOf makes a setter of a list; each element goes through parse.
func listOf[T any](d *decoder, name string, dst *[]T, parse func(string) (T, error)) field {
	return field{name, func(key string, node *yaml.Node) {
		d.items(key, node, func(item *yaml.Node) {
			if v, ok := parseNode(d, key, item, parse); ok {
				*dst = append(*dst, v)
			}
		})
	}}
}

func parseNode[T any](d *decoder, key string, node *yaml.Node, parse func(string) (T, error)) (v T, ok bool) {
	text, ok := d.scalar(key, node)
	if !ok {
		return v, false
	}
	v, err := parse(text)
	if err != nil {
		d.fail(node.Line, key, "%s", err)
		return v, false
	}
	return v, true
}

// section makes a setter of a nested mapping.
func (d *decoder) section(name string, fields ...field) field {
	return field{name, func(key string, node *yaml.Node) { d.mapping(key, node, fields...) }}
}

func isNull(node *yaml.Node) bool { return node.Kind == yaml.ScalarNode && node.Tag == "!!null" }

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// suggest names the known key that a typing mistake was meant to be.
func suggest(got string, fields []field) string {
	for _, f := range fields {
		if strings.EqualFold(f.key, got) || oneEdit(f.key, got) {
			return ": did you mean " + f.key + "?"
		}
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.key
	}
	return ": remove it, or use one of " + strings.Join(known, ", ")
}

// oneEdit says whether a and b differ by one inserted, removed, changed or swapped letter.
func oneEdit(a, b string) bool {
	if len(a) > len(b) {
		a, b = b, a
	}
	if len(b)-len(a) > 1 {
		return false
	}
	i := 0
	for i < len(a) && a[i] == b[i] {
		i++
	}
	if len(a) != len(b) {
		return a[i:] == b[i+1:]
	}
	if i+1 < len(a) && a[i] == b[i+1] && a[i+1] == b[i] {
		return a[i+2:] == b[i+2:]
	}
	return i == len(a) || a[i+1:] == b[i+1:]
}

func parseAddr(text string) (netip.Addr, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil || addr.Zone() != "" {
		return netip.Addr{}, fmt.Errorf("%q is not an IP address such as 192.0.2.10 or 2001:db8::10", text)
	}
	return addr.Unmap(), nil
}
