package images

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Record is one image as the index keeps it: index/<hex of ID>.json.
type Record struct {
	// ID is the config's digest; Tags are repo:tag, Digests repo@digest (manifest or index).
	ID      digest.Digest `json:"id"`
	Tags    []string      `json:"tags,omitempty"`
	Digests []string      `json:"digests,omitempty"`
	Config  Config        `json:"config"`
	// Layers are names below layers/, bottom first.
	Layers []string  `json:"layers"`
	Size   int64     `json:"size"` // compressed layers and config, in bytes
	Pulled time.Time `json:"pulled"`
	// Access says for each repository that the image was had from which pods may use it under that
	// name without asking the registry again.
	Access map[string]Access `json:"accessByRepository,omitempty"`

	// LastUsed is the file's modification time; only Records fills it in.
	LastUsed time.Time `json:"-"`
}

// Access is who proved to the registry that they may read the image.
type Access struct {
	Anyone bool `json:"anyone,omitempty"`
	// Preloaded says that the administrator brought it.
	Preloaded bool `json:"preloaded,omitempty"`
	// Credentials that worked: SHA-256 hashes of logins, coordinates of secrets and of service
	// accounts, names of the node's own plugins.
	Credentials []string `json:"credentials,omitempty"`
}

func (a Access) merge(b Access) Access {
	a.Anyone, a.Preloaded = a.Anyone || b.Anyone, a.Preloaded || b.Preloaded
	a.Credentials = union(a.Credentials, b.Credentials)
	return a
}

// mergeAccess is both, in a new map.
func mergeAccess(a, b map[string]Access) map[string]Access {
	out := maps.Clone(a)
	if out == nil {
		out = map[string]Access{}
	}
	for repo, access := range b {
		out[repo] = out[repo].merge(access)
	}
	return out
}

// repos are the repositories in the image's names.
func (r Record) repos() []string {
	var list []string
	for _, name := range slices.Concat(r.Tags, r.Digests) {
		if ref, err := parseRef(name); err == nil {
			list = append(list, ref.repo())
		}
	}
	return list
}

func union(a, b []string) []string {
	out := append(slices.Clone(a), b...)
	slices.Sort(out)
	return slices.Compact(out)
}

// matches says whether a reference names this image: repo:tag, repo@digest, or the bare ID.
func (r Record) matches(ref string) bool {
	return ref == r.ID.String() || slices.Contains(r.Tags, ref) || slices.Contains(r.Digests, ref)
}

// index holds the records; it re-reads the directory whenever that changed.
type index struct {
	dir, lockPath string
	log           *slog.Logger

	mu      sync.Mutex
	mtime   time.Time
	loaded  time.Time
	records map[digest.Digest]Record
}

func newIndex(dir, lockPath string, log *slog.Logger) *index {
	return &index{dir: dir, lockPath: lockPath, log: log}
}

// settled is how long a directory must be unchanged before its time stamp proves that nothing
// was written after the last load: the kernel's clock for it ticks up to every 10 ms.
const settled = 50 * time.Millisecond

// all returns every record, from memory while the directory is unchanged.
func (x *index) all() (map[digest.Digest]Record, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.load()
}

func (x *index) load() (map[digest.Digest]Record, error) {
	st, err := os.Stat(x.dir)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	if x.records != nil && st.ModTime().Equal(x.mtime) && x.loaded.Sub(x.mtime) > settled {
		return x.records, nil
	}
	loaded := time.Now()
	entries, err := os.ReadDir(x.dir)
	if err != nil {
		return nil, fmt.Errorf("read image index: %w", err)
	}
	records := make(map[digest.Digest]Record, len(entries))
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		r, err := readRecord(filepath.Join(x.dir, e.Name()))
		if err != nil {
			x.log.Warn("Image record left out", "error", err)
			continue // the image counts as absent; pulling it writes the record anew
		}
		records[r.ID] = r
	}
	x.records, x.mtime, x.loaded = records, st.ModTime(), loaded
	return records, nil
}

func readRecord(path string) (Record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Record{}, fmt.Errorf("read image record: %w", err)
	}
	var stored struct {
		Record
		ForAll *Access `json:"access"` // of all names alike, as earlier versions wrote it
	}
	if err := json.Unmarshal(data, &stored); err != nil {
		return Record{}, fmt.Errorf("read image record %s: %w", path, err)
	}
	r := stored.Record
	if stored.ForAll != nil && r.Access == nil {
		r.Access = map[string]Access{}
		for _, repo := range r.repos() {
			r.Access[repo] = *stored.ForAll
		}
	}
	if err := r.ID.Validate(); err != nil {
		return Record{}, fmt.Errorf("read image record %s: %w", path, err)
	}
	return r, nil
}

// lastUsed is the time of the last touch, by whatever process.
func (x *index) lastUsed(id digest.Digest) time.Time {
	st, err := os.Stat(x.file(id))
	if err != nil {
		return time.Time{}
	}
	return st.ModTime()
}

// Records returns every image of the store, with the time of its last use.
func (m *Manager) Records() ([]Record, error) {
	records, err := m.index.all()
	if err != nil {
		return nil, err
	}
	out := make([]Record, 0, len(records))
	for _, r := range records {
		r.LastUsed = m.index.lastUsed(r.ID)
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Record) int { return a.LastUsed.Compare(b.LastUsed) })
	return out, nil
}

// find returns the record that a reference names.
func (x *index) find(ref string) (Record, bool, error) {
	records, err := x.all()
	if err != nil {
		return Record{}, false, err
	}
	for _, r := range records {
		if r.matches(ref) {
			return r, true, nil
		}
	}
	return Record{}, false, nil
}

// put stores a record, merged with what is known of the same image, and takes its tags away
// from every other image.
func (x *index) put(r Record) (Record, error) {
	unlock, err := flock(x.lockPath, unix.LOCK_EX)
	if err != nil {
		return r, err
	}
	defer unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.records = nil
	records, err := x.load()
	if err != nil {
		return r, err
	}
	if old, ok := records[r.ID]; ok {
		r.Tags, r.Digests = union(old.Tags, r.Tags), union(old.Digests, r.Digests)
		r.Access = mergeAccess(old.Access, r.Access)
	}
	if err := x.write(r); err != nil {
		return r, err
	}
	for id, other := range records {
		kept := slices.DeleteFunc(slices.Clone(other.Tags), func(t string) bool { return slices.Contains(r.Tags, t) })
		if id == r.ID || len(kept) == len(other.Tags) {
			continue
		}
		other.Tags = kept
		if err := x.write(other); err != nil {
			return r, err
		}
	}
	x.records = nil
	return r, nil
}

func (x *index) file(id digest.Digest) string {
	return filepath.Join(x.dir, id.Algorithm().String()+"-"+id.Encoded()+".json")
}

// write replaces the record's file atomically and durably.
func (x *index) write(r Record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode image record %s: %w", r.ID, err)
	}
	if err := writeFileSync(x.file(r.ID), data); err != nil {
		return fmt.Errorf("write image record %s: %w", r.ID, err)
	}
	return nil
}

// remove deletes a record; missing is success.
func (x *index) remove(id digest.Digest) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.records = nil
	if err := os.Remove(x.file(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove image record %s: %w", id, err)
	}
	return syncDir(x.dir)
}

// touch notes that the image was used now.
func (x *index) touch(id digest.Digest) error {
	now := time.Now()
	return os.Chtimes(x.file(id), now, now)
}

// writeFileSync writes a file under a temporary name, syncs it and renames it into place.
func writeFileSync(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
