package systemd

// strictProperties are filters of system calls alone (systemd.exec(5)): what changes mounts or
// capabilities is the launcher's affair, which needs its own. Left out are two that the launcher
// itself would meet: RestrictNamespaces=, which the container's seccomp profile has, and
// RestrictSUIDSGID=, which takes openat2 away.
func strictProperties(unit Unit) []property {
	if !unit.Strict {
		return nil
	}
	return []property{
		prop("LockPersonality", true),
		prop("MemoryDenyWriteExecute", true),
		prop("RestrictRealtime", true),
		prop("SystemCallArchitectures", []string{"native"}),
		prop("RestrictAddressFamilies", filterList{true, []string{"AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK"}}),
		prop("SystemCallFilter", filterList{false, []string{"@clock", "@cpu-emulation", "@debug", "@module", "@obsolete", "@raw-io", "@reboot", "@swap"}}),
		prop("SystemCallErrorNumber", int32(eperm)),
	}
}

// eperm is what a filtered call fails with; without it the process would be killed.
const eperm = 1

// filterList is the D-Bus type (bas) of lists that allow or deny.
type filterList struct {
	Allow bool
	Names []string
}
