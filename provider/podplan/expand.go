package podplan

import "strings"

// Expand replaces $(NAME) by lookup's value. $$ is a literal $ before "(" or elsewhere; a
// reference that lookup does not know stays as it is. These are the rules documented for
// command, args and env of a container.
func Expand(in string, lookup func(name string) (string, bool)) string {
	var out strings.Builder
	for {
		at := strings.IndexByte(in, '$')
		if at < 0 || at+1 == len(in) {
			out.WriteString(in)
			return out.String()
		}
		out.WriteString(in[:at])
		rest := in[at+1:]
		switch rest[0] {
		case '$':
			out.WriteByte('$')
			in = rest[1:]
		case '(':
			in = expandReference(&out, rest, lookup)
		default:
			out.WriteByte('$')
			out.WriteByte(rest[0])
			in = rest[1:]
		}
	}
}

// expandReference handles rest, which begins with "(", and returns what comes after it.
func expandReference(out *strings.Builder, rest string, lookup func(string) (string, bool)) string {
	end := strings.IndexByte(rest, ')')
	if end < 0 {
		out.WriteString("$(")
		return rest[1:]
	}
	name := rest[1:end]
	if value, ok := lookup(name); ok {
		out.WriteString(value)
	} else {
		out.WriteString("$(" + name + ")")
	}
	return rest[end+1:]
}
