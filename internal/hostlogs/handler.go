package hostlogs

import (
	"compress/gzip"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
)

// Options say what is served.
type Options struct {
	// Dir has the files.
	Dir string
	// Query lets clients ask for what services have written, a kubelet's enableSystemLogQuery.
	Query bool
	// Journalctl is the program that reads the journal; "journalctl" when empty.
	Journalctl string
	// Units are further ones that clients mean by a name.
	Units map[string][]string
}

// handler serves paths below /logs/, without that.
type handler struct {
	o     Options
	files fs.FS
	serve http.Handler
}

// New makes a handler of paths relative to Options.Dir.
func New(o Options) http.Handler {
	if o.Journalctl == "" {
		o.Journalctl = "journalctl"
	}
	h := &handler{o: o, files: nothing{}}
	if root, err := os.OpenRoot(o.Dir); err == nil {
		h.files = files{path.Clean(o.Dir), root}
	}
	h.serve = http.FileServerFS(h.files)
	return h
}

// ServeHTTP implements http.Handler.
func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !h.o.Query {
		h.serve.ServeHTTP(w, r)
		return
	}
	q, err := parse(r.URL.Query())
	switch {
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	case q.empty():
		h.serve.ServeHTTP(w, r)
		return
	case r.URL.Path != "/" && r.URL.Path != "":
		http.Error(w, "path not allowed in query mode", http.StatusNotAcceptable)
		return
	}
	if err := q.check(); err != nil {
		http.Error(w, err.Error(), http.StatusNotAcceptable)
		return
	}
	if len(q.files) == 1 {
		h.file(w, r, q.files[0])
		return
	}
	w.Header().Set("Content-Type", "text/plain;charset=UTF-8")
	var out io.Writer = w
	if r.Header.Get("Accept-Encoding") == "gzip" {
		w.Header().Set("Content-Encoding", "gzip")
		packed := gzip.NewWriter(w)
		defer packed.Close()
		out = packed
	}
	h.copyServices(r.Context(), out, q)
}

// file serves the one file that a query names.
func (h *handler) file(w http.ResponseWriter, r *http.Request, name string) {
	name = path.Clean("/" + name)
	info, err := fs.Stat(h.files, name[1:])
	if err != nil || info.IsDir() {
		http.Error(w, "query: Invalid value: no such file", http.StatusNotAcceptable)
		return
	}
	asked := r.Clone(r.Context())
	asked.URL = &url.URL{Path: name}
	h.serve.ServeHTTP(w, asked)
}
