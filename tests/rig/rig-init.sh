#!/bin/sh
# PID 1 of a machine until systemd takes over. On a host with cgroup v1 controllers
# systemd-nspawn mounts these read-only; here they are the machine's own.
while read -r _ target type options _; do
	case "$type,$options" in
	cgroup,ro | cgroup,ro,*) mount -o remount,rw,bind "$target" ;;
	esac
done </proc/self/mounts
# Loop devices are the host's: what a machine attaches is detached when its power goes.
mknod -m 0600 /dev/loop-control c 10 237
for n in $(seq 0 31); do mknod -m 0660 "/dev/loop$n" b 7 "$n"; done
exec /lib/systemd/systemd "$@"
