package probes

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// expandStatic replaces $(NAME) in an exec probe's command by the container's literal
// env values; others stay as they are. "$$" is one "$", which hides a reference.
func expandStatic(command []string, env []corev1.EnvVar) []string {
	values := map[string]string{}
	for _, e := range env {
		if e.ValueFrom == nil {
			values[e.Name] = e.Value
		}
	}
	out := make([]string, len(command))
	for i, arg := range command {
		out[i] = expand(arg, values)
	}
	return out
}

func expand(s string, values map[string]string) string {
	var out strings.Builder
	for {
		at := strings.IndexByte(s, '$')
		if at < 0 || at+1 == len(s) {
			out.WriteString(s)
			return out.String()
		}
		out.WriteString(s[:at])
		s = s[at:]
		name, ok := strings.CutPrefix(s, "$(")
		end := strings.IndexByte(name, ')')
		switch {
		case s[1] == '$':
			out.WriteByte('$')
			s = s[2:]
		case !ok || end < 0:
			out.WriteString(s[:2])
			s = s[2:]
		default:
			value, known := values[name[:end]]
			if !known {
				value = s[:end+3]
			}
			out.WriteString(value)
			s = s[end+3:]
		}
	}
}
