package kubeletapi

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// TestRequests: what a client writes into a path never becomes a series of its own.
func TestRequests(t *testing.T) {
	q := newRequests()
	served := 0
	handler := q.count(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { served++ }))
	for _, path := range []string{
		"/exec/ns/p/c", "/exec/ns/q/c", "/metrics", "/metrics/cadvisor", "/metrics/anything", "/stats/summary", "/anything/else", "/" + strings.Repeat("x", 5000),
	} {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil))
	}
	strange := httptest.NewRequest(http.MethodGet, "/pods", nil)
	strange.Method = "BREW"
	handler.ServeHTTP(httptest.NewRecorder(), strange)
	if served != 9 {
		t.Errorf("%d requests served", served)
	}
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(q.collectors()...)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, family := range families {
		if family.GetName() != "kubelet_http_requests_total" {
			continue
		}
		for _, m := range family.Metric {
			for _, label := range m.Label {
				if label.GetName() == "method" && label.GetValue() == "BREW" {
					t.Error("a series for a method that a client made up")
				}
				if label.GetName() == "path" {
					got[label.GetValue()] = m.Counter.GetValue()
				}
			}
		}
	}
	want := map[string]float64{"exec": 2, "metrics": 1, "metrics/cadvisor": 1, "stats": 1, "other": 3, "pods": 1}
	if len(got) != len(want) {
		t.Errorf("series %v, want %v", got, want)
	}
	for path, n := range want {
		if got[path] != n {
			t.Errorf("%s: %v requests, want %v", path, got[path], n)
		}
	}
}
