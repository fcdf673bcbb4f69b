package services

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// TestTimed: what is put in place anew and what changes are counted apart.
func TestTimed(t *testing.T) {
	s := newStats()
	s.timed(time.Now(), true)
	s.timed(time.Now(), false)
	s.timed(time.Now(), false)
	registry := prometheus.NewRegistry()
	testnet.Must(t, registry.Register(s.all))
	families, err := registry.Gather()
	testnet.Must(t, err)
	got := map[string]uint64{}
	for _, m := range families[0].GetMetric() {
		got[m.GetLabel()[0].GetValue()] = m.GetHistogram().GetSampleCount()
	}
	if got["full"] != 1 || got["change"] != 2 {
		t.Errorf("counted %v", got)
	}
}
