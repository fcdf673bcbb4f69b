package images

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
)

// absFile joins a relative file name of hosts.toml with the file's directory.
func absFile(dir, name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(dir, name)
}

// fileList reads a TOML value that is a file name or a list of them.
func fileList(v any, dir string) ([]string, error) {
	names, err := stringList(v)
	for i := range names {
		names[i] = absFile(dir, names[i])
	}
	return names, err
}

func stringList(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		out := make([]string, 0, len(v))
		for _, item := range v {
			s, ok := item.(string)
			if !ok {
				return nil, fmt.Errorf("want strings, have %T", item)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, fmt.Errorf("want a string or a list of strings, have %T", v)
}

// clientPairs reads containerd's forms: "both.pem", ["both.pem", …] or [["cert", "key"], …].
func clientPairs(v any, dir string) ([][2]string, error) {
	if s, ok := v.(string); ok {
		return [][2]string{{absFile(dir, s), ""}}, nil
	}
	list, ok := v.([]any)
	if v == nil || !ok {
		if v == nil {
			return nil, nil
		}
		return nil, fmt.Errorf("want a string or a list, have %T", v)
	}
	var out [][2]string
	for _, item := range list {
		pair, err := stringList(item)
		if err != nil {
			return nil, err
		}
		if len(pair) == 0 || len(pair) > 2 {
			return nil, errors.New("want pairs of certificate and key")
		}
		p := [2]string{absFile(dir, pair[0])}
		if len(pair) == 2 && pair[1] != "" {
			p[1] = absFile(dir, pair[1])
		}
		out = append(out, p)
	}
	return out, nil
}

func headers(table map[string]any) (http.Header, error) {
	h := http.Header{}
	for name, v := range table {
		values, err := stringList(v)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		for _, value := range values {
			if strings.ContainsAny(name+value, "\r\n\x00") {
				return nil, fmt.Errorf("%q: control characters", name)
			}
			h.Add(name, value)
		}
	}
	return h, nil
}
