#!/bin/sh
# install.sh NAME: builds the tool at its pinned version unless that was done before, and prints its path.
set -eu
name=$1
pin=$(awk -v name="$name" '$1 == name { print $2 }' "$(dirname "$0")/versions")
[ -n "$pin" ] || { echo "tools/versions has no $name" >&2; exit 1; }
dir="${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/vk-metal/tools/$name-${pin##*@}-$(go env GOVERSION)"
if [ ! -x "$dir/$name" ]; then
	echo "building $pin" >&2
	GOBIN="$dir" GOFLAGS= go install "$pin" >&2
fi
echo "$dir/$name"
