package registry

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// entry is one file of a layer that is written here instead of copied from a tree.
type entry struct {
	path  string // without a leading slash
	mode  fs.FileMode
	data  []byte
	file  string // of the host, instead of data
	link  string // target of a symbolic link
	isDir bool
	uid   int
	gid   int
}

// layer makes a layer of a tree ("" for none) and of entries. The same input makes
// the same bytes: names are sorted, times are zero.
func layer(tree string, entries ...entry) (v1.Layer, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	if tree != "" {
		if err := writeTree(w, tree); err != nil {
			return nil, fmt.Errorf("archive %s: %w", tree, err)
		}
	}
	sort.SliceStable(entries, func(i, j int) bool { return entries[i].path < entries[j].path })
	for _, e := range entries {
		if err := writeEntry(w, e); err != nil {
			return nil, fmt.Errorf("archive %s: %w", e.path, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("archive a layer: %w", err)
	}
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(buf.Bytes())), nil
	}, tarball.WithMediaType(types.OCILayer))
}

func writeTree(w *tar.Writer, tree string) error {
	return filepath.WalkDir(tree, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == tree {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		header, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		header.Name = strings.TrimPrefix(path, tree+"/")
		if info.IsDir() {
			header.Name += "/"
		}
		if owner, ok := info.Sys().(*syscall.Stat_t); ok {
			header.Uid, header.Gid = int(owner.Uid), int(owner.Gid)
		}
		return writeFile(w, header, path)
	})
}

func writeEntry(w *tar.Writer, e entry) error {
	header := &tar.Header{Name: e.path, Mode: int64(e.mode), Typeflag: tar.TypeReg, Size: int64(len(e.data)), Uid: e.uid, Gid: e.gid}
	switch {
	case e.isDir:
		header.Typeflag, header.Name = tar.TypeDir, e.path+"/"
	case e.link != "":
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
	case e.file != "":
		info, err := os.Stat(e.file)
		if err != nil {
			return err
		}
		header.Size = info.Size()
		return writeFile(w, header, e.file)
	}
	anonymize(header)
	if err := w.WriteHeader(header); err != nil {
		return err
	}
	_, err := w.Write(e.data)
	return err
}

// writeFile writes the header and, for a regular file, path's content.
func writeFile(w *tar.Writer, header *tar.Header, path string) error {
	anonymize(header)
	if err := w.WriteHeader(header); err != nil || header.Typeflag != tar.TypeReg {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	_, err = io.Copy(w, f)
	return err
}

// anonymize drops what differs from build to build.
func anonymize(header *tar.Header) {
	header.ModTime = time.Unix(0, 0)
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	header.Uname, header.Gname = "", ""
	header.Format = tar.FormatPAX
}
