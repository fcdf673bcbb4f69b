package packages

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vk-metal/vk-metal/tests/rig"
	"github.com/vk-metal/vk-metal/tests/rig/rigtest"
)

// fakeConfig makes the condition of vk-metal.service true with an agent that cannot
// reach anything: what is tested here is what systemd and the package do.
const fakeConfig = `
mkdir -p /etc/systemd/system/vk-metal.service.d
cat >/etc/systemd/system/vk-metal.service.d/test.conf <<END
[Service]
ExecStart=
ExecStart=/bin/sh -c 'systemd-notify --ready; exec sleep 100000'
NotifyAccess=all
WatchdogSec=0
END
systemctl daemon-reload
echo "# test" >/etc/vk-metal/config.yaml
systemctl start vk-metal.service`

// aPod is a unit in the pods' slice; its output goes through the log writer.
const aPod = `
dir=/run/vk-metal/log-streams
mkdir -m 700 $dir/.new.uid.c.0
cd $dir/.new.uid.c.0
cat >stream.json <<END
{"logFile":"/var/log/pods/ns_pod_uid/c/0.log","unit":"vkm-uid-c-0.service","podNamespace":"ns","podName":"pod","podUID":"uid","container":"c","attempt":0}
END
mkfifo -m 622 stdout stderr
mv $dir/.new.uid.c.0 $dir/uid.c.0
for i in $(seq 100); do [ -e $dir/uid.c.0/open ] && break; sleep 0.05; done
cat >/root/workload <<'END'
#!/bin/sh
cd /run/vk-metal/log-streams/uid.c.0
exec 1<>stdout 2<>stderr
i=0
while [ ! -e /root/end ]; do
	i=$((i+1))
	echo line $i
	while [ -e /root/pause ]; do touch /root/paused; sleep 0.05; done
done
echo total $i >/root/total
echo last words >&2
END
chmod +x /root/workload
systemd-run --quiet --slice=kubepods-podx.slice --unit=vkm-uid-c-0.service /root/workload`

// podNetwork is what an agent and its pods have in a host's network.
const podNetwork = `
ip link add vkmtest type veth peer name peer && ip link set vkmtest group 30315 up alias 'vk-metal/1 uid=u ips=10.244.0.2'
ip link add vkm-vxlan type vxlan id 118 dstport 4789 external && ip link set vkm-vxlan up alias 'vk-metal/1 vxlan'
ip route add 10.244.0.2/32 dev vkmtest proto 119
ip route add unreachable 10.244.0.0/24 proto 118 metric 32767
ip -6 route add unreachable fd00:244::/64 proto 118 metric 32767
nft 'add table inet vk-metal-pods; add chain inet vk-metal-pods c; add table ip vk-metal-services; add table inet vk-metal-vxlan'`

func TestDeb(t *testing.T) {
	m := bootMachine(t)
	debs := build(t, "*.deb")
	install(t, m, debs[0])
	t.Run("fresh", func(t *testing.T) { testFresh(t, m) })
	t.Run("configured", func(t *testing.T) { testConfigured(t, m) })
	t.Run("log writer", func(t *testing.T) { testLogWriter(t, m) })
	t.Run("upgrade", func(t *testing.T) { testUpgrade(t, m, debs[1]) })
	t.Run("remove", func(t *testing.T) { testRemove(t, m, debs[1]) })
	t.Run("purge", func(t *testing.T) { testPurge(t, m) })
}

func install(t *testing.T, m *rig.Machine, deb string) {
	t.Helper()
	if err := m.InstallDeb(rigtest.Timed(t, 3*time.Minute), deb); err != nil {
		t.Fatal(err)
	}
}

// testFresh: installed without a configuration, nothing runs and nothing complains.
func testFresh(t *testing.T, m *rig.Machine) {
	expect(t, m, "dpkg -s vk-metal | grep ^Status", "Status: install ok installed")
	expect(t, m, "systemctl is-enabled vk-metal.service vk-metal-log.service", "enabled\nenabled")
	expect(t, m, "systemctl is-active vk-metal.service vk-metal-log.service || true", "inactive\ninactive")
	expect(t, m, "systemctl is-system-running --wait", "running")
	expect(t, m, "systemctl start vk-metal.service; systemctl is-active vk-metal.service || true", "inactive")
	expect(t, m, "stat -c '%a %n' /var/lib/vk-metal /var/log/pods /run/vk-metal /run/vk-metal/log-streams /etc/vk-metal",
		"711 /var/lib/vk-metal\n755 /var/log/pods\n755 /run/vk-metal\n700 /run/vk-metal/log-streams\n755 /etc/vk-metal")
	expect(t, m, "systemd-analyze verify --man=no vk-metal.service vk-metal-log.service 2>&1 | grep vk-metal || true", "")
	expect(t, m, "dpkg --verify vk-metal", "")
	run(t, m, "test -e /usr/share/vk-metal/manifests/node-rbac.yaml -a -e /usr/share/vk-metal/manifests/controller.yaml")
	run(t, m, "vk-metal version")
}

func testConfigured(t *testing.T, m *rig.Machine) {
	run(t, m, fakeConfig)
	expect(t, m, "systemctl is-active vk-metal.service vk-metal-log.service", "active\nactive")
	expect(t, m, "systemctl show -P NRestarts vk-metal-log.service", "0")
	// It has few capabilities: what keeps others of root out of its root, which is the host's,
	// is that it cannot be dumped.
	look := "setpriv --bounding-set=-sys_ptrace ls -d /proc/$(systemctl show -P MainPID %s)/root/ | wc -l; true"
	run(t, m, "systemd-run --quiet --unit=open.service --property=CapabilityBoundingSet= sleep 100000")
	expect(t, m, fmt.Sprintf(look, "open.service"), "1")
	expect(t, m, fmt.Sprintf(look, "vk-metal-log.service"), "0")
	run(t, m, "systemctl stop open.service")
	t.Log("log writer, idle:", run(t, m, "grep VmRSS /proc/$(systemctl show -P MainPID vk-metal-log.service)/status"))
}

// testLogWriter kills the writer again and again under a container's output, and at its end.
func testLogWriter(t *testing.T, m *rig.Machine) {
	run(t, m, aPod)
	for range 10 {
		time.Sleep(100 * time.Millisecond) // output has to go on between the kills
		run(t, m, "systemctl kill -s KILL vk-metal-log.service")
	}
	eventually(t, m, "systemctl is-active vk-metal-log.service")
	// The container ends while no writer is there, with room in its pipes: systemd holds them.
	run(t, m, "touch /root/pause")
	eventually(t, m, "[ -e /root/paused ]")
	run(t, m, `
		mkdir -p /run/systemd/system/vk-metal-log.service.d
		printf '[Service]\nRestartSec=1h\n' >/run/systemd/system/vk-metal-log.service.d/slow.conf
		systemctl daemon-reload`)
	// A kill that meets no writer is lost.
	eventually(t, m, `
		systemctl kill -s KILL vk-metal-log.service
		[ "$(systemctl show -P SubState vk-metal-log.service)" = auto-restart ]`)
	run(t, m, `
		touch /root/end
		rm /root/pause
		while systemctl is-active --quiet vkm-uid-c-0.service; do sleep 0.1; done
		[ -e /run/vk-metal/log-streams/uid.c.0 ]
		rm -r /run/systemd/system/vk-metal-log.service.d; systemctl daemon-reload
		systemctl restart vk-metal-log.service`)
	eventually(t, m, "[ ! -e /run/vk-metal/log-streams/uid.c.0 ]")
	expect(t, m, `
		cd /var/log/pods/ns_pod_uid/c
		total=$(cut -d' ' -f2 /root/total)
		seq -f 'stdout F line %.0f' $total >/root/want
		cat $(ls 0.log.* 2>/dev/null) 0.log | cut -d' ' -f2- | grep ^stdout | cmp - /root/want && echo same
		grep -c 'stderr F last words' 0.log
		stat -c %a 0.log`, "same\n1\n440")
	t.Log(run(t, m, "cat /root/total; ls /var/log/pods/ns_pod_uid/c"))
	expect(t, m, "journalctl -q -u vkm-uid-c-0.service -o cat SYSLOG_IDENTIFIER=c | grep -m1 -x 'line 1'", "line 1")
}

// testUpgrade: agent and log writer are new processes, the pod is the old one.
func testUpgrade(t *testing.T, m *rig.Machine, deb string) {
	run(t, m, "rm -f /root/end; "+aPod)
	pids := "systemctl show -P MainPID vkm-uid-c-0.service"
	agent, writer := "systemctl show -P MainPID vk-metal.service", "systemctl show -P MainPID vk-metal-log.service"
	pod, before := run(t, m, pids), [2]string{run(t, m, agent), run(t, m, writer)}
	install(t, m, deb)
	expect(t, m, "dpkg-query -W -f '${Version}' vk-metal", "0.0.2")
	for i, now := range []string{agent, writer} { // nobody waits for the agent's
		eventually(t, m, fmt.Sprintf(`[ "$(%s)" != %s ]`, now, before[i]))
	}
	eventually(t, m, "systemctl is-active vk-metal.service vk-metal-log.service")
	if run(t, m, pids) != pod {
		t.Error("the pod was restarted")
	}
	expect(t, m, "systemctl show -P NRestarts vk-metal.service", "0")
	run(t, m, "touch /root/end")
	eventually(t, m, "[ ! -e /run/vk-metal/log-streams/uid.c.0 ]")
}

// testRemove: the agent stops, a pod runs on; installed again it starts.
func testRemove(t *testing.T, m *rig.Machine, deb string) {
	run(t, m, "systemd-run --quiet --slice=kubepods-podx.slice --unit=vkm-other.service sleep 100000")
	run(t, m, "apt-get remove -y -q vk-metal")
	expect(t, m, "systemctl is-active vk-metal.service vk-metal-log.service vkm-other.service || true", "inactive\nactive\nactive")
	expect(t, m, "ls /etc/vk-metal", "config.yaml")
	install(t, m, deb)
	eventually(t, m, "systemctl is-active vk-metal.service")
}

// testPurge: pods end, and nothing of ours stays.
func testPurge(t *testing.T, m *rig.Machine) {
	run(t, m, "mkdir -p /run/vk-metal/pods/u/ns; touch /run/vk-metal/pods/u/ns/net; mount --bind /proc/1/ns/net /run/vk-metal/pods/u/ns/net")
	if out, err := m.Run(rigtest.Timed(t, 3*time.Minute), "vk-metal", "clean-network"); err == nil || !strings.Contains(err.Error(), "the agent runs") {
		t.Errorf("clean-network beside a running agent: %q, %v", out, err)
	}
	network := "ip -o link | wc -l; ip route; ip -6 route; nft list ruleset"
	before := inNetwork(t, m, network)
	inNetwork(t, m, podNetwork)
	if inNetwork(t, m, network) == before {
		t.Error("there is nothing to purge from the network")
	}
	run(t, m, "rm -r /etc/systemd/system/vk-metal.service.d; apt-get purge -y -q vk-metal")
	if after := inNetwork(t, m, network); after != before {
		t.Errorf("the network was\n%s\nand after the purge it is\n%s", before, after)
	}
	expect(t, m, `systemctl is-active vk-metal.service vk-metal-log.service vkm-other.service || true
		ls -d /etc/vk-metal /var/lib/vk-metal /run/vk-metal /var/log/pods 2>/dev/null || true
		find / -xdev -name '*vk-metal*' -not -path '/proc/*' -not -path '/var/cache/*' -not -path '/var/log/*' -not -path '/var/lib/vk-metal*'
		systemctl is-system-running`, "inactive\ninactive\ninactive\nrunning")
}

// inNetwork runs a script with this host's programs in the machine's network: nft is not in
// Debian's base.
func inNetwork(t *testing.T, m *rig.Machine, script string) string {
	t.Helper()
	leader, err := m.Leader(rigtest.Timed(t, 3*time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(rigtest.Timed(t, 3*time.Minute), "nsenter", "-t", strconv.Itoa(leader), "-n", "sh", "-ec", script)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}
