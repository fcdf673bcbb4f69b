package logwriter

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
)

// state is what a killed writer leaves to the next one, per stream.
type state struct {
	// Inflight is 1+index of the FIFO whose records are being appended, 0 for none.
	Inflight int64
	LogSize  int64 // of the log file before them
	Stamp    int64 // their time, Unix nanoseconds
	End      int64 // their end in the spool; they begin at Pos
	// Pos is up to where each spool is in the log file.
	Pos [2]int64
}

const stateVersion = 1

// stateFile holds one state; a save is one pwrite within one page, which a kill
// cannot cut in two.
type stateFile struct {
	file *os.File
	buf  []byte
}

func openState(path string) (*stateFile, state, error) {
	var s state
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, s, err
	}
	f := &stateFile{file: file}
	version := int64(0)
	r := io.NewSectionReader(file, 0, 4096)
	err = binary.Read(r, binary.LittleEndian, &version)
	if errors.Is(err, io.EOF) {
		return f, s, nil
	}
	if err == nil && version != stateVersion {
		err = fmt.Errorf("version %d is not %d", version, stateVersion)
	}
	if err = errors.Join(err, binary.Read(r, binary.LittleEndian, &s)); err != nil {
		return nil, s, errors.Join(fmt.Errorf("read %s: %w", path, err), file.Close())
	}
	return f, s, nil
}

func (f *stateFile) save(s state) error {
	f.buf = f.buf[:0]
	for _, v := range [...]int64{stateVersion, s.Inflight, s.LogSize, s.Stamp, s.End, s.Pos[0], s.Pos[1]} {
		f.buf = binary.LittleEndian.AppendUint64(f.buf, uint64(v))
	}
	_, err := f.file.WriteAt(f.buf, 0)
	return err
}
