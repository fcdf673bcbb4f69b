package config

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/internal/pressure"
)

func TestEviction(t *testing.T) {
	c, err := Parse("config.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	s := c.Eviction.Settings()
	if s.TransitionPeriod != 30*time.Second || s.MaxPodGrace != 20*time.Second {
		t.Errorf("%+v", s)
	}
	var got []string
	for _, th := range s.Thresholds {
		got = append(got, fmt.Sprintf("%s %s %s %s", th.Signal, th.Value, th.Grace, th.MinReclaim))
	}
	want := "memory.available 200Mi 0s 50Mi, nodefs.available 7% 0s 0%, nodefs.inodesFree 5% 0s 0%, imagefs.available 15% 0s 0%, " +
		"imagefs.inodesFree 5% 0s 0%, memory.available 1Gi 1m30s 50Mi, allocatableMemory.available 200Mi 0s 50Mi"
	if strings.Join(got, ", ") != want {
		t.Errorf("%s", strings.Join(got, ", "))
	}
}

func TestEvictionDefaultsAreAKubelets(t *testing.T) {
	for text, thresholds := range map[string]int{
		"":                                    6,
		"evictionHard: {}\n":                  0,
		"evictionHard: {pid.available: 5%}\n": 1,
		"evictionHard: {pid.available: 5%}\nmergeDefaultEvictionSettings: true\n":    7,
		"evictionHard: {memory.available: 0%}\nmergeDefaultEvictionSettings: true\n": 4,
	} {
		c, err := Parse("config.yaml", []byte(head+text))
		if err != nil {
			t.Fatal(err)
		}
		if got := c.Eviction.Settings(); len(got.Thresholds) != thresholds || got.TransitionPeriod != 5*time.Minute {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if d := pressure.DefaultHard(); d[pressure.MemoryAvailable] != (pressure.Amount{Number: 100 << 20}) {
		t.Errorf("a configuration has changed the defaults: %v", d)
	}
}

func TestBadEviction(t *testing.T) {
	for text, want := range map[string]string{
		"evictionHard: {memory.free: 1Mi}\n":                                                       "evictionHard.memory.free: no eviction signal: use memory.available",
		"evictionHard: {memory.available: much}\n":                                                 `evictionHard.memory.available: "much" is not an amount such as 100Mi or 10%`,
		"evictionHard: {nodefs.available: 120%}\n":                                                 "not a percentage",
		"evictionSoft: {memory.available: 1Gi}\n":                                                  "needs evictionSoftGracePeriod.memory.available",
		"evictionSoftGracePeriod: {memory.available: 1m}\n":                                        "has no threshold in evictionSoft",
		"evictionSoft: {memory.available: 1Gi}\nevictionSoftGracePeriod: {memory.available: 0s}\n": "use evictionHard",
		"evictionMaxPodGracePeriod: -1\n":                                                          "evictionMaxPodGracePeriod",
	} {
		_, err := Parse("config.yaml", []byte(head+text))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}
