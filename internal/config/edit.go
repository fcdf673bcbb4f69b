package config

import (
	"bytes"
	"fmt"
	"slices"

	"gopkg.in/yaml.v3"
)

// Joined is what `vk-metal join` learns and writes into the configuration.
type Joined struct {
	APIServers []string
	// NodeName empty leaves the setting alone.
	NodeName string
}

// ConflictError says that a file already holds another value.
type ConflictError struct {
	Key       string
	Old, New  string
	Line      int
	File      string
	Overwrite string // the flag that allows it
}

// Error implements error.
func (e *ConflictError) Error() string {
	return fmt.Sprintf("%s:%d: %s is already %s: remove it, or give %s to replace it with %s",
		e.File, e.Line, e.Key, e.Old, e.Overwrite, e.New)
}

// Edit returns data (a configuration file, may be empty) with the joined settings. Other
// keys and comments stay as they are; a different value of a joined key is a
// *ConflictError unless force is set.
func Edit(name string, data []byte, joined Joined, force bool) ([]byte, error) {
	var doc yaml.Node
	if len(bytes.TrimSpace(data)) == 0 {
		data = fmt.Appendf(nil, "apiVersion: %s\nkind: %s\n", APIVersion, Kind)
	}
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if len(doc.Content) == 0 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%s: not a configuration file: move it away", name)
	}
	e := editor{file: name, root: doc.Content[0], force: force}
	e.put("apiServers", listNode(joined.APIServers))
	if joined.NodeName != "" {
		e.put("nodeName", &yaml.Node{Kind: yaml.ScalarNode, Value: joined.NodeName})
	}
	if e.err != nil {
		return nil, e.err
	}
	return e.render(&doc)
}

type editor struct {
	file  string
	root  *yaml.Node
	force bool
	err   error
}

// put sets a top-level key; the first conflict is kept in err.
func (e *editor) put(key string, value *yaml.Node) {
	old := lookup(e.root, key)
	switch {
	case old == nil || isNull(old):
		e.remove(key)
		e.root.Content = append(e.root.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key}, value)
	case slices.Equal(flat(old), flat(value)):
	case e.force:
		*old = *value
	case e.err == nil:
		e.err = &ConflictError{
			Key: key, Old: fmt.Sprint(flat(old)), New: fmt.Sprint(flat(value)),
			Line: old.Line, File: e.file, Overwrite: "--force",
		}
	}
}

func (e *editor) remove(key string) {
	for i := 0; i+1 < len(e.root.Content); i += 2 {
		if e.root.Content[i].Value == key {
			e.root.Content = slices.Delete(e.root.Content, i, i+2)
			return
		}
	}
}

// render encodes the document and proves that it is a good configuration.
func (e *editor) render(doc *yaml.Node) ([]byte, error) {
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(doc); err != nil {
		return nil, fmt.Errorf("render %s: %w", e.file, err)
	}
	if _, err := Parse(e.file, out.Bytes()); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func listNode(values []string) *yaml.Node {
	list := &yaml.Node{Kind: yaml.SequenceNode}
	for _, v := range values {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: v})
	}
	return list
}

// flat lists the scalars of a scalar or a list.
func flat(node *yaml.Node) []string {
	if node.Kind == yaml.ScalarNode {
		return []string{node.Value}
	}
	var values []string
	for _, item := range node.Content {
		values = append(values, flat(item)...)
	}
	return values
}
