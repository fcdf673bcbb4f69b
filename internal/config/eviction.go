package config

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

// perSignal makes a setter of a mapping from eviction signals.
func perSignal[T any](d *decoder, name string, dst *map[pressure.Signal]T, parse func(string) (T, error)) field {
	return field{name, func(key string, node *yaml.Node) {
		if isNull(node) {
			return
		}
		*dst = map[pressure.Signal]T{}
		d.pairs(key, node, func(key string, name, value *yaml.Node) {
			signal := pressure.Signal(name.Value)
			if !slices.Contains(pressure.Signals, signal) {
				d.fail(name.Line, key, "no eviction signal: use %s", signalNames())
				return
			}
			if v, ok := parseNode(d, key, value, parse); ok {
				(*dst)[signal] = v
			}
		})
	}}
}

func signalNames() string {
	var names []string
	for _, s := range pressure.Signals {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}

func parseSoftGrace(text string) (time.Duration, error) {
	grace, err := parseDuration(text)
	if err == nil && grace == 0 {
		err = fmt.Errorf("%q is no grace period: use evictionHard for a threshold without one", text)
	}
	return grace, err
}

// checkEviction looks at settings that need one another.
func (d *decoder) checkEviction(e *Eviction, root *yaml.Node) {
	for _, signal := range pressure.Signals {
		_, isSoft := e.Soft[signal]
		_, hasGrace := e.SoftGrace[signal]
		switch {
		case isSoft && !hasGrace:
			d.fail(lookup(root, "evictionSoft").Line, "evictionSoft."+string(signal), "needs evictionSoftGracePeriod.%s", signal)
		case hasGrace && !isSoft:
			d.fail(lookup(root, "evictionSoftGracePeriod").Line, "evictionSoftGracePeriod."+string(signal), "has no threshold in evictionSoft")
		}
	}
}
