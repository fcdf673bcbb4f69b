package volumes

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
)

// TestNFSMount is what the kernel is told; TestV2NFS of tests/e2e has a server and a client.
func TestNFSMount(t *testing.T) {
	for _, c := range []struct {
		server, address string
		readonly        bool
		options         []string
		source, told    string
		attrs           int
	}{
		{"files.example", "192.0.2.7", false, []string{"hard"}, "files.example:/export", "vers=4.2,addr=192.0.2.7,hard", 0},
		{"files.example", "192.0.2.7", true, []string{"soft"}, "files.example:/export", "vers=4.2,addr=192.0.2.7,soft,ro", unix.MOUNT_ATTR_RDONLY},
		{"[2001:db8::7]", "2001:db8::7", true, nil, "[2001:db8::7]:/export", "vers=4.2,addr=2001:db8::7,ro", unix.MOUNT_ATTR_RDONLY},
		{"f", "192.0.2.7", false, []string{"noexec,hard,_netdev,rw", "nfsvers=4.1"}, "f:/export", "vers=4.1,addr=192.0.2.7,hard", unix.MOUNT_ATTR_NOEXEC},
		{"f", "192.0.2.7", true, []string{"ro", "port=2050"}, "f:/export", "vers=4.2,addr=192.0.2.7,ro,port=2050", unix.MOUNT_ATTR_RDONLY},
	} {
		opts, err := parseNFSOptions(c.options)
		if err != nil {
			t.Fatal(err)
		}
		e := opts.export(&corev1.NFSVolumeSource{Server: c.server, Path: "/export"}, netip.MustParseAddr(c.address), c.readonly)
		if told := strings.Join(e.options, ","); e.source != c.source || told != c.told || e.attrs != c.attrs {
			t.Errorf("%+v: %+v", c, e)
		}
	}
	for _, bad := range []string{"vers=3", "addr=192.0.2.9", "source=other:/"} {
		if _, err := parseNFSOptions([]string{bad}); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
}

// nfsNull is a call of NFS 4's NULL as another client sends it, but for the transaction.
const nfsNull = "80000028" + "00766b6d" + "00000000" + "00000002" + "000186a3" + "00000004" + "00000000" + "0000000000000000" + "0000000000000000"

// answering is a server on loopback that reads one call and answers it.
func answering(t *testing.T, answer string) nfsOptions {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			call := make([]byte, len(nfsNull)/2)
			if _, err := io.ReadFull(conn, call); err == nil && hex.EncodeToString(call) == nfsNull {
				words, _ := hex.DecodeString(answer)
				_, _ = conn.Write(words)
			}
			if answer != "" {
				conn.Close()
			}
		}
	}()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return nfsOptions{port: port}
}

// TestFindNFS: the kernel is asked for what answers as a server does, and for nothing else.
func TestFindNFS(t *testing.T) {
	good := answering(t, "80000018"+"00766b6d"+"00000001"+strings.Repeat("00000000", 4))
	if addr, err := good.find(t.Context(), "127.0.0.1"); err != nil || addr != netip.MustParseAddr("127.0.0.1") {
		t.Errorf("a server: %v %v", addr, err)
	}
	bad := answering(t, hex.EncodeToString([]byte("HTTP/1.1 400 Bad Request")))
	if _, err := bad.find(t.Context(), "127.0.0.1"); err == nil || !strings.Contains(err.Error(), "does not speak RPC") {
		t.Errorf("another server: %v", err)
	}
	silent := answering(t, "")
	ctx, cancel := context.WithCancel(t.Context())
	errs := make(chan error)
	go func() {
		_, err := silent.find(ctx, "127.0.0.1")
		errs <- err
	}()
	cancel()
	if err := <-errs; err == nil || !slices.ContainsFunc([]string{"reach NFS server", "ask NFS server"}, func(s string) bool { return strings.HasPrefix(err.Error(), s) }) {
		t.Errorf("a silent server: %v", err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	none := nfsOptions{port: port}
	if _, err := none.find(t.Context(), "127.0.0.1"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("no server: %v", err)
	}
	rdma, err := parseNFSOptions([]string{"proto=rdma"})
	if err != nil {
		t.Fatal(err)
	}
	if addr, err := rdma.find(t.Context(), "127.0.0.1"); err != nil || !addr.IsLoopback() {
		t.Errorf("a server that is not reached by TCP: %v %v", addr, err)
	}
}
