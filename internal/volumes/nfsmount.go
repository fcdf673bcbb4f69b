package volumes

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vk-metal/vk-metal/internal/mounts"
	"github.com/vk-metal/vk-metal/internal/stuck"
)

const (
	// nfsPatience bounds one try to mount.
	nfsPatience = 30 * time.Second
	// unmountPatience is how long a mount that goes may take to be out of sight.
	unmountPatience = 10 * time.Second
)

// find resolves the server and has it answer. The kernel would wait for one that does not, and
// nothing could end that.
func (o *nfsOptions) find(ctx context.Context, server string) (netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, nfsPatience)
	defer cancel()
	host := strings.Trim(server, "[]")
	if o.without {
		addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err != nil {
			return netip.Addr{}, fmt.Errorf("find NFS server: %w", err)
		}
		return addrs[0].Unmap(), nil
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, o.port))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("reach NFS server %s: %w", server, err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })() //nolint:errcheck // closed already
	if err := pingNFS(conn); err != nil {
		return netip.Addr{}, fmt.Errorf("ask NFS server %s: it does not answer: %w", server, err)
	}
	return conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap(), nil
}

// pingNFS calls the procedure of NFS 4 that does nothing (RFC 5531, RFC 7530 section 15.1). Any
// answer is one: what it refuses the kernel is told again, and says better.
func pingNFS(conn io.ReadWriter) error {
	const (
		last               = 1 << 31 // fragment of a record
		xid                = 0x766b6d
		call, reply        = 0, 1
		rpc, nfs, null, v4 = 2, 100003, 0, 4
	)
	var message []byte
	for _, word := range []uint32{last | 10*4, xid, call, rpc, nfs, v4, null, 0, 0, 0, 0} { // no credentials, no verifier
		message = binary.BigEndian.AppendUint32(message, word)
	}
	if _, err := conn.Write(message); err != nil {
		return err
	}
	var answer [3]uint32 // record mark, transaction, type
	if err := binary.Read(conn, binary.BigEndian, &answer); err != nil {
		return err
	}
	if answer[1] != xid || answer[2] != reply {
		return errors.New("what listens there does not speak RPC")
	}
	return nil
}

// attachNFS mounts an export at dir. The kernel asks the server meanwhile: it is waited for no
// longer than nfsPatience, and what it makes later is thrown away, since it is put into its place
// only here.
func (m *Manager) attachNFS(ctx context.Context, export nfsExport, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, nfsPatience)
	defer cancel()
	mount, err := stuck.Do(ctx, &m.calls, "mount "+dir, export.mount, closeFD)
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("the server does not answer: %w", err)
	}
	if err != nil {
		return err
	}
	defer closeFD(mount)
	return unix.MoveMount(mount, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}

func closeFD(fd int) {
	_ = unix.Close(fd) //nolint:errcheck // takes down a mount that is nowhere
}

// mount makes a mount that is nowhere yet (fsopen(2); NFS knows it since Linux 5.6).
func (e nfsExport) mount() (int, error) {
	fs, err := unix.Fsopen("nfs4", unix.FSOPEN_CLOEXEC)
	if errors.Is(err, unix.ENODEV) {
		return -1, errors.New("the kernel of this node has no NFS client (file system nfs4)")
	}
	if err != nil {
		return -1, fmt.Errorf("open file system nfs4: %w", err)
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", e.source); err != nil {
		return -1, explained(fs, err)
	}
	for _, option := range e.options {
		if err := setNFSOption(fs, option); err != nil {
			return -1, fmt.Errorf("mount option %q: %w", option, explained(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, explained(fs, err)
	}
	mount, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, e.attrs)
	if err != nil {
		return -1, explained(fs, err)
	}
	return mount, nil
}

func setNFSOption(fs int, option string) error {
	if key, value, ok := strings.Cut(option, "="); ok {
		return unix.FsconfigSetString(fs, key, value)
	}
	return unix.FsconfigSetFlag(fs, option)
}

// explained adds what the kernel says beside the number: each message is one read, after its
// level (Documentation/filesystems/mount_api.rst).
func explained(fs int, err error) error {
	line := make([]byte, 1024)
	for {
		n, readErr := unix.Read(fs, line)
		if readErr != nil || n == 0 {
			return err
		}
		if text, isError := strings.CutPrefix(strings.TrimSpace(string(line[:n])), "e "); isError {
			err = fmt.Errorf("%s: %w", text, err)
		}
	}
}

// unmountNFS takes a mount away also when its server does not answer. The kernel then takes it out
// of sight at once, and may keep the caller until what was written has reached the server.
func (m *Manager) unmountNFS(ctx context.Context, uid, name string) error {
	dir := m.nfsPath(uid, name)
	mounted, err := mounts.Listed(dir)
	if err != nil || !mounted {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, unmountPatience)
	defer cancel()
	_, err = stuck.Do(ctx, &m.calls, "unmount "+dir, func() (struct{}, error) {
		return struct{}{}, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	}, func(struct{}) {})
	mounted, listErr := mounts.Listed(dir)
	switch {
	case listErr != nil:
		return listErr
	case mounted:
		return fmt.Errorf("unmount %s: %w", dir, cmp.Or(err, errors.New("something else is mounted there")))
	}
	return nil
}
