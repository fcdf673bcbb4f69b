package images

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// blobAttempts is how often a broken download is taken up again at one host.
const blobAttempts = 5

// fetchBlob downloads a blob into ingest/ and verifies size and digest. What an earlier attempt
// left there is taken up again. The caller removes the file.
func (p *puller) fetchBlob(ctx context.Context, d ocispec.Descriptor) (string, error) {
	if err := d.Digest.Validate(); err != nil {
		return "", fmt.Errorf("fetch blob %q: %w", d.Digest, err)
	}
	if d.Size < 0 || d.Size > p.m.opts.Limits.BlobBytes {
		return "", fmt.Errorf("fetch blob %s: %d bytes are more than the limit of %d", d.Digest, d.Size, p.m.opts.Limits.BlobBytes)
	}
	if err := p.m.checkFree(d.Size); err != nil {
		return "", err
	}
	partial := p.m.path("ingest", d.Digest.Algorithm().String()+"-"+d.Digest.Encoded())
	unlock, err := p.m.chains.LockContext(ctx, partial)
	if err != nil {
		return "", err
	}
	defer unlock()
	f, err := openPartial(partial)
	if err != nil {
		return "", err
	}
	defer f.Close()
	err = p.each(ctx, func(e endpoint) bool { return e.pull }, func(h *host) error {
		return p.download(ctx, h, d, f)
	})
	if err != nil {
		return "", err
	}
	whole := p.m.path("ingest", fmt.Sprintf("%s-%s.%d", d.Digest.Algorithm(), d.Digest.Encoded(), time.Now().UnixNano()))
	return whole, os.Rename(partial, whole)
}

// openPartial opens the file of a download under a lock that other processes respect; if one of
// them is at it, this process downloads on its own.
func openPartial(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		f.Close()
		return nil, fmt.Errorf("%s is being downloaded by another process", path)
	}
	return f, nil
}

// download appends to f until it has the whole blob, and verifies it.
func (p *puller) download(ctx context.Context, h *host, d ocispec.Descriptor, f *os.File) error {
	var last error
	for range blobAttempts {
		before, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if before < d.Size || d.Size == 0 {
			last = p.append(ctx, h, d, f, before)
		}
		after, err := f.Seek(0, io.SeekEnd)
		if err != nil {
			return err
		}
		if after == d.Size {
			if err := verifyFile(f, d.Digest); err != nil {
				return errors.Join(err, f.Truncate(0))
			}
			return nil
		}
		if after > d.Size {
			if err := f.Truncate(0); err != nil {
				return err
			}
			last = fmt.Errorf("server sent more than the %d bytes of blob %s", d.Size, d.Digest)
		}
		if after <= before || ctx.Err() != nil {
			break // no progress: another host may do better
		}
	}
	if last == nil {
		last = io.ErrUnexpectedEOF
	}
	return fmt.Errorf("fetch blob %s: %w", d.Digest, last)
}

func (p *puller) append(ctx context.Context, h *host, d ocispec.Descriptor, f *os.File, offset int64) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	idle := time.AfterFunc(p.m.opts.ProgressTimeout, func() {
		cancel(fmt.Errorf("no byte for %v", p.m.opts.ProgressTimeout))
	})
	defer idle.Stop()
	body, resumed, err := h.blob(ctx, d.Digest, offset)
	if err != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	defer body.Close()
	if !resumed {
		offset = 0
		if err := f.Truncate(0); err != nil {
			return err
		}
	}
	if _, err := f.Seek(offset, io.SeekStart); err != nil {
		return err
	}
	_, err = io.Copy(f, io.LimitReader(&progressReader{r: body, idle: idle, timeout: p.m.opts.ProgressTimeout}, d.Size-offset+1))
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

type progressReader struct {
	r       io.Reader
	idle    *time.Timer
	timeout time.Duration
}

func (p *progressReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	if n > 0 {
		p.idle.Reset(p.timeout)
	}
	return n, err
}

func verifyFile(f *os.File, want digest.Digest) error {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	verifier := want.Verifier()
	if _, err := io.Copy(verifier, f); err != nil {
		return fmt.Errorf("verify blob %s: %w", want, err)
	}
	if !verifier.Verified() {
		return fmt.Errorf("verify blob %s: content has another digest", want)
	}
	return nil
}

// checkFree refuses to write when too little would stay free.
func (m *Manager) checkFree(more int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(m.opts.Root, &st); err != nil {
		return fmt.Errorf("read free space of the image store: %w", err)
	}
	free := int64(st.Bavail) * st.Bsize
	if free-more < m.opts.Limits.MinFreeBytes {
		return fmt.Errorf("no space for %d bytes in the image store: %d are free, %d must stay free", more, free, m.opts.Limits.MinFreeBytes)
	}
	return nil
}
