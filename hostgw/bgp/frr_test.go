package bgp

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// md5Works says whether this kernel has TCP_MD5SIG; a skip is thereby its own proof.
func md5Works(t testing.TB) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	sig := unix.TCPMD5Sig{Keylen: 1}
	sig.Addr.Family = unix.AF_INET
	if err := unix.SetsockoptTCPMD5Sig(fd, syscall.IPPROTO_TCP, unix.TCP_MD5SIG, &sig); err != nil {
		missing(t, "this kernel has no TCP_MD5SIG: "+err.Error())
	}
}

const frrTor = `
router bgp 65001
 bgp router-id 192.0.2.254
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp graceful-restart
 no bgp network import-check
 neighbor nodes peer-group
 neighbor nodes remote-as external
 neighbor nodes timers 3 9
 EXTRA
 bgp listen range 192.0.2.0/24 peer-group nodes
 address-family ipv4 unicast
  neighbor nodes activate
  neighbor nodes soft-reconfiguration inbound
  network 10.244.9.0/24
 exit-address-family
 address-family ipv6 unicast
  neighbor nodes activate
 exit-address-family
`

// TestFRR: a top-of-rack router with dynamic neighbours, MD5 and TTL security; two nodes
// with AS numbers of their own. A wrong password keeps the session down and is never logged.
func TestFRR(t *testing.T) {
	md5Works(t)
	l := newLab(t)
	tor, a, b := l.host("tor"), l.host("a"), l.host("b")
	tor.run("ip link add br0 type bridge", "ip link set dev br0 up", "ip addr add 192.0.2.254/24 dev br0", "ip addr add 2001:db8::fe/64 dev br0 nodad",
		"ip addr add 10.244.9.1/32 dev lo")
	for i, h := range []*host{a, b} {
		n := string(rune('1' + i))
		tor.join(h, "", "192.0.2."+n+"/24 2001:db8::"+n+"/64")
		tor.run("ip link set dev " + h.name + " master br0")
		h.run("ip addr add 10.244." + n + ".1/32 dev lo")
	}
	tor.frr(strings.Replace(frrTor, "EXTRA", "neighbor nodes password sesame\n neighbor nodes ttl-security hops 1", 1))
	password := filepath.Join(l.dir, "password")
	must(t, os.WriteFile(password, []byte("wrong\n"), 0o600))
	cfg := "asn: 64512\nimport: {prefixes: [10.244.0.0/16]}\npeers:\n- {name: tor, address: 192.0.2.254, asn: 65001, ttlSecurity: true, passwordFile: " +
		password + ", communities: [\"64512:7\"], connectRetry: 1s}\n"
	na, nb := node("a", "192.0.2.1 2001:db8::1", podsA), node("b", "192.0.2.2 2001:db8::2", podsB)
	na.Annotations[AnnotationASN], nb.Annotations[AnnotationASN] = "64601", "64602"
	sa := a.speaker(order{Self: na, Others: []Node{nb}, Config: cfg})
	sb := b.speaker(order{Self: nb, Others: []Node{na}, Config: cfg})
	eventually(t, "both try to connect", func() error {
		if !strings.Contains(sa.log.String(), "192.0.2.254") {
			return os.ErrNotExist
		}
		return nil
	})
	sa.up(0)

	must(t, os.WriteFile(password, []byte("sesame\n"), 0o600))
	sa.tell(sa.last) // the file was read again
	sb.tell(sb.last)
	tor.becomes(186, "10.244.1.0/24 via 192.0.2.1", "10.244.2.0/24 via 192.0.2.2", "fd00:244:1::/64 via 2001:db8::1", "fd00:244:2::/64 via 2001:db8::2")
	a.becomes(RouteProtocol, "10.244.2.0/24 via 192.0.2.2", "10.244.9.0/24 via 192.0.2.254", "fd00:244:2::/64 via 2001:db8::fe")
	a.reaches("10.244.1.1", b, "10.244.2.1")
	b.reaches("10.244.2.1", tor, "10.244.9.1")
	if out := tor.vtysh("show bgp ipv4 unicast 10.244.1.0/24"); !strings.Contains(out, "Community: 64512:7") {
		t.Errorf("FRR shows\n%s", out)
	}
	for _, log := range []string{sa.log.String(), sb.log.String()} {
		if strings.Contains(log, "sesame") || strings.Contains(log, "wrong") {
			t.Error("the password is in the log")
		}
	}

	t.Run("a change of what routes carry resets nothing", func(t *testing.T) {
		before := tor.vtysh("show bgp neighbors 192.0.2.1 json")
		o := sa.last
		o.Config = strings.Replace(cfg, "64512:7", "64512:8", 1) + "- {name: more, address: 192.0.2.200, asn: 65009}\n"
		sa.tell(o)
		eventually(t, "FRR sees the new community", func() error {
			if !strings.Contains(tor.vtysh("show bgp ipv4 unicast 10.244.1.0/24"), "64512:8") {
				return os.ErrNotExist
			}
			return nil
		})
		if b, a := counter(before, "connectionsDropped"), counter(tor.vtysh("show bgp neighbors 192.0.2.1 json"), "connectionsDropped"); a != b || a == "" {
			t.Errorf("sessions dropped: %q before, %q after", b, a)
		}
	})
	t.Run("bad permissions", func(t *testing.T) {
		must(t, os.Chmod(password, 0o644))
		sa.tell(sa.last)
		eventually(t, "the status says so", func() error {
			if !strings.Contains(sa.status().Error, "nobody else can read") {
				return os.ErrNotExist
			}
			return nil
		})
		tor.becomes(186, "10.244.1.0/24 via 192.0.2.1", "10.244.2.0/24 via 192.0.2.2", "fd00:244:1::/64 via 2001:db8::1", "fd00:244:2::/64 via 2001:db8::2")
	})
}

// counter is the text of a field in FRR's JSON.
func counter(json, field string) string {
	_, rest, _ := strings.Cut(json, `"`+field+`":`)
	value, _, _ := strings.Cut(rest, ",")
	return value
}
