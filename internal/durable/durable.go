// Package durable replaces small files so that a power cut leaves the old text or the new one.
package durable

import (
	"errors"
	"os"
	"path/filepath"
)

// Replace writes a file that only root reads (0600) as a whole; its text is on the disk when it
// returns. A directory that is missing is made (0711).
func Replace(path string, data []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(path+".new", path)
}
