#!/bin/sh
# PID 1 of a machine until systemd takes over. On a host with cgroup v1 controllers
# systemd-nspawn mounts these read-only; here they are the machine's own.
while read -r _ target type options _; do
	case "$type,$options" in
	cgroup,ro | cgroup,ro,*) mount -o remount,rw,bind "$target" ;;
	esac
done </proc/self/mounts
exec /lib/systemd/systemd "$@"
