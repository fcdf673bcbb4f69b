package kubeletapi

import (
	"fmt"
	"io"
	"net/http"
	"strconv"
)

// setVerbosity serves a kubelet's /debug/flags/v: PUT a number and more, or less, is logged.
func (s *Server) setVerbosity(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		http.Error(w, "unsupported http method", http.StatusNotAcceptable)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64))
	if err != nil {
		http.Error(w, "error reading request body: "+err.Error(), http.StatusBadRequest)
		return
	}
	level, err := strconv.ParseInt(string(body), 10, 32)
	if err != nil {
		http.Error(w, fmt.Sprintf("failed set klog.logging %s: %v", body, err), http.StatusBadRequest)
		return
	}
	if s.o.Verbosity != nil {
		s.o.Verbosity(int(level))
	}
	w.Header().Set("Content-Type", "text/plain")
	_, _ = fmt.Fprintf(w, "successfully set klog.logging to %s", body)
}
