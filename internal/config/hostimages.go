package config

import (
	"fmt"
	"regexp"

	"gopkg.in/yaml.v3"
)

// hostRoots reads the list of directories and disk images that are host images.
func (d *decoder) hostRoots(key string, node *yaml.Node) (roots []HostRoot) {
	names := map[string]bool{}
	d.items(key, node, func(item *yaml.Node) {
		var r HostRoot
		before := len(d.errs)
		at := fmt.Sprintf("%s[%d]", key, len(roots))
		d.mapping(at, item,
			parsed(d, "name", &r.Name, parseHostRootName),
			parsed(d, "path", &r.Path, parsePath),
			parsed(d, "verity", &r.Verity, parseOneOf("hashed", "signed")))
		switch {
		case len(d.errs) > before:
			return
		case r.Name == "" || r.Path == "":
			d.fail(item.Line, at, "give a name, for the image vk-metal.local/<name>, and the path of a directory or a disk image")
		case names[r.Name]:
			d.fail(item.Line, at+".name", "%q is the name of another root", r.Name)
		}
		names[r.Name] = true
		roots = append(roots, r)
	})
	return roots
}

// hostRootName is one component of a repository's name (OCI distribution specification).
var hostRootName = regexp.MustCompile(`^[a-z0-9]+([._-][a-z0-9]+)*$`)

func parseHostRootName(text string) (string, error) {
	if !hostRootName.MatchString(text) || len(text) > 63 {
		return "", fmt.Errorf("%q cannot be part of an image's name: use lower-case letters, digits and single '.', '_' and '-' between them, 63 at most", text)
	}
	if text == "host" {
		return "", fmt.Errorf("%q is the name of the host's own root: use another", text)
	}
	return text, nil
}
