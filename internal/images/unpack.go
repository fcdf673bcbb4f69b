package images

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/sys/unix"
)

// maxZstdWindow bounds the decoder's memory; the zstd tool's own default is 128 MiB.
const maxZstdWindow = 128 * mib

// unpackLayer unpacks a verified blob into layers/<key>. A crash leaves only a directory in tmp/.
func (m *Manager) unpackLayer(ctx context.Context, l layer, below []layer, blob string) error {
	unlock, err := m.chains.LockContext(ctx, l.key)
	if err != nil {
		return err
	}
	defer unlock()
	if m.hasLayer(l.key) {
		return nil
	}
	tmp, err := os.MkdirTemp(m.path("tmp"), "layer-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	dir, err := os.Open(tmp)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("lock %s: %w", tmp, err)
	}
	if err := m.unpackInto(ctx, tmp, l, below, blob); err != nil {
		return err
	}
	// Everything must be on disk before the name says that it is complete.
	if err := unix.Syncfs(int(dir.Fd())); err != nil {
		return fmt.Errorf("sync layer: %w", err)
	}
	if err := os.Rename(tmp, m.path("layers", l.key)); err != nil {
		if m.hasLayer(l.key) {
			return nil // another process was faster
		}
		return err
	}
	return syncDir(m.path("layers"))
}

func (m *Manager) unpackInto(ctx context.Context, dir string, l layer, below []layer, blob string) error {
	f, err := os.Open(blob)
	if err != nil {
		return err
	}
	defer f.Close()
	plain, err := decompress(bufio.NewReaderSize(f, 256*kib))
	if err != nil {
		return err
	}
	defer plain.Close()
	paths := []string{dir}
	for i := len(below) - 1; i >= 0; i-- {
		paths = append(paths, m.path("layers", below[i].key))
	}
	u, err := newUnpacker(paths, m.opts.Limits)
	if err != nil {
		return err
	}
	defer u.close()
	u.free = m.checkFree
	verifier := l.diffID.Verifier()
	if err := u.apply(ctx, io.TeeReader(plain, verifier)); err != nil {
		return err
	}
	if !verifier.Verified() {
		return fmt.Errorf("verify unpacked layer: content is not %s", l.diffID)
	}
	return nil
}

// decompress tells gzip, zstd and plain tar apart by their first bytes.
func decompress(r *bufio.Reader) (io.ReadCloser, error) {
	head, err := r.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return gzip.NewReader(r)
	case len(head) == 4 && head[1] == 0xb5 && head[2] == 0x2f && head[3] == 0xfd && head[0] == 0x28,
		len(head) == 4 && head[0]&0xf0 == 0x50 && head[1] == 0x2a && head[2] == 0x4d && head[3] == 0x18:
		d, err := zstd.NewReader(r, zstd.WithDecoderMaxWindow(maxZstdWindow), zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}

// unpacker applies one layer's tar to stack[0].
type unpacker struct {
	stack  stack
	root   *os.Root // of stack[0], for removals
	limits Limits
	free   func(more int64) error

	entries, bytes, sinceFree int64
	// dirs caches what parent names resolve to; dropped whenever a name may have changed meaning.
	dirs map[string]string
	// times are set last, because writing into a directory changes them.
	times map[string]time.Time
}

// newUnpacker opens the layers' directories, the one to fill first, then those below it.
func newUnpacker(dirs []string, limits Limits) (*unpacker, error) {
	u := &unpacker{limits: limits.withDefaults(), dirs: map[string]string{}, times: map[string]time.Time{}, free: func(int64) error { return nil }}
	for _, dir := range dirs {
		t, err := openTree(dir)
		if err != nil {
			u.close()
			return nil, err
		}
		u.stack = append(u.stack, t)
	}
	root, err := os.OpenRoot(dirs[0])
	if err != nil {
		u.close()
		return nil, err
	}
	u.root = root
	return u, u.initRoot()
}

func (u *unpacker) close() {
	for _, t := range u.stack {
		t.close()
	}
	if u.root != nil {
		u.root.Close()
	}
}

// initRoot gives the layer's root what the layer below has, because overlayfs shows the topmost.
func (u *unpacker) initRoot() error {
	if len(u.stack) > 1 {
		return u.copyMeta("", 1)
	}
	return unix.Fchmod(u.stack[0].fd, 0o755)
}

// freeEvery is how many bytes are written between two looks at the free space.
const freeEvery = 64 * mib

// apply reads the tar to its last byte, padding included, so that a digest over it is whole.
func (u *unpacker) apply(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for {
		if err := ctx.Err(); err != nil {
			return err
		}
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read layer: %w", err)
		}
		if err := u.account(hdr); err != nil {
			return err
		}
		if err := u.entry(hdr, tr); err != nil {
			return fmt.Errorf("entry %q: %w", hdr.Name, err)
		}
	}
	if err := u.drain(r); err != nil {
		return fmt.Errorf("read layer's end: %w", err)
	}
	return u.setTimes()
}

// drain reads what follows the archive's end, within the layer's byte limit.
func (u *unpacker) drain(r io.Reader) error {
	n, err := io.Copy(io.Discard, io.LimitReader(r, u.limits.LayerBytes+1))
	if err != nil {
		return err
	}
	if n > u.limits.LayerBytes {
		return fmt.Errorf("more than %d bytes", u.limits.LayerBytes)
	}
	return nil
}

// account enforces the limits before an entry is written.
func (u *unpacker) account(hdr *tar.Header) error {
	u.entries++
	if u.entries > u.limits.LayerEntries {
		return fmt.Errorf("layer has more than the limit of %d entries", u.limits.LayerEntries)
	}
	if hdr.Size < 0 || hdr.Size > u.limits.LayerBytes-u.bytes {
		return fmt.Errorf("layer unpacks to more than the limit of %d bytes at entry %q", u.limits.LayerBytes, hdr.Name)
	}
	u.bytes += hdr.Size
	u.sinceFree += hdr.Size + 4*kib
	if u.sinceFree < freeEvery {
		return nil
	}
	u.sinceFree = 0
	return u.free(hdr.Size)
}

const whiteoutPrefix = ".wh."

// entry writes one entry of the archive.
func (u *unpacker) entry(hdr *tar.Header, body io.Reader) error {
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	name, err := cleanName(hdr.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return u.rootEntry(hdr)
	}
	dir, err := u.resolveDir(parentOf(name))
	if err != nil {
		return err
	}
	fd, err := u.stack[0].openDir(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	at := place{fd: fd, dir: dir, base: path.Base(name)}
	if strings.HasPrefix(at.base, whiteoutPrefix) {
		return u.whiteout(at)
	}
	if err := u.clear(at, hdr.Typeflag == tar.TypeDir); err != nil {
		return err
	}
	return u.create(at, hdr, body)
}

func (u *unpacker) rootEntry(hdr *tar.Header) error {
	if hdr.Typeflag != tar.TypeDir {
		return errors.New("the root is not a directory")
	}
	u.times[""] = hdr.ModTime
	return setMetaFd(u.stack[0].fd, hdr)
}

// place is where an entry goes: the open parent directory and the last name.
type place struct {
	fd   int
	dir  string
	base string
}

func (p place) path() string { return path.Join(p.dir, p.base) }

// procPath names the entry for calls without an *at form; base is not followed by l-calls.
func (p place) procPath() string { return fmt.Sprintf("/proc/self/fd/%d/%s", p.fd, p.base) }

// clear makes room for an entry. A directory stays if the entry is one too; a whiteout that
// gives way to a directory leaves it opaque, because the directory below was deleted.
func (u *unpacker) clear(at place, wantDir bool) error {
	var st unix.Stat_t
	err := unix.Fstatat(at.fd, at.base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	if isDir(st) && wantDir {
		return nil
	}
	clear(u.dirs)
	delete(u.times, at.path())
	if err := u.root.RemoveAll(at.path()); err != nil {
		return err
	}
	if wantDir && isWhiteout(st) {
		return u.mkdirOpaque(at)
	}
	return nil
}

func (u *unpacker) mkdirOpaque(at place) error {
	if err := unix.Mkdirat(at.fd, at.base, 0o755); err != nil {
		return err
	}
	return unix.Lsetxattr(at.procPath(), xattrOpaque, []byte("y"), 0)
}
