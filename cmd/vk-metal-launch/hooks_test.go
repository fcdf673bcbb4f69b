//go:build linux

package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vk-metal/vk-metal/internal/launchspec"
)

// hook is a shell script with arguments of its own.
func hook(script string) launchspec.Hook {
	return launchspec.Hook{Path: "/bin/sh", Args: []string{"hook", "-c", script, "zero", "one"}, Env: []string{"MINE=1", "PATH=/usr/bin:/bin"}}
}

// TestHooks: they are told where the root is, in order, and get nothing of ours.
func TestHooks(t *testing.T) {
	t.Setenv("LD_PRELOAD", "")
	t.Setenv("OURS", "1")
	scratch := t.TempDir()
	if err := os.Mkdir(filepath.Join(scratch, "root"), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := &launchspec.Spec{PodUID: "uid", Container: "app", Env: [][]byte{[]byte("SECRET=1")}, Hooks: []launchspec.Hook{
		hook(`cat >root/state; env >root/env; pwd >root/dir; echo "$0 $1" >root/args; cp config.json root/config`),
		hook(`test -e root/state && echo second >root/order; echo noise >&2`),
	}}
	if err := runHooks(spec, scratch); err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		data, err := os.ReadFile(filepath.Join(scratch, "root", name))
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	var state hookState
	if err := json.Unmarshal([]byte(read("state")), &state); err != nil || state != (hookState{ociVersion, "uid.app", "creating", os.Getpid(), scratch}) {
		t.Errorf("state %+v, %v", state, err)
	}
	var config hookConfig
	if err := json.Unmarshal([]byte(read("config")), &config); err != nil || config.Root.Path != filepath.Join(scratch, "root") {
		t.Errorf("config.json %+v, %v", config, err)
	}
	if env := read("env"); strings.Contains(env, "OURS") || strings.Contains(env, "SECRET") || strings.Contains(env, "LD_PRELOAD") || !strings.Contains(env, "MINE=1\n") {
		t.Errorf("environment %q", env)
	}
	if dir, args, order := read("dir"), read("args"), read("order"); dir != scratch+"\n" || args != "zero one\n" || order != "second\n" {
		t.Errorf("in %q with %q, and then %q", dir, args, order)
	}
}

func TestHooksThatFail(t *testing.T) {
	slow := hook("exec sleep 1000")
	slow.Timeout = 1
	for name, test := range map[string]struct {
		hook launchspec.Hook
		want string
	}{
		"exit":     {hook("echo no such card >&2; exit 3"), "run hook /bin/sh of a CDI device: exit status 3: no such card"},
		"missing":  {launchspec.Hook{Path: "/no/such/hook"}, "no such file or directory"},
		"relative": {launchspec.Hook{Path: "root/bin/sh"}, "its path is not absolute"},
		"slow":     {slow, "not over after 1s"},
	} {
		t.Run(name, func(t *testing.T) {
			after := hook("touch root-after")
			scratch := t.TempDir()
			err := runHooks(&launchspec.Spec{Hooks: []launchspec.Hook{test.hook, after}}, scratch)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
			if _, err := os.Stat(filepath.Join(scratch, "root-after")); err == nil {
				t.Error("the next one has run")
			}
		})
	}
	for _, spec := range []*launchspec.Spec{{Hooks: []launchspec.Hook{hook("")}}, {Root: launchspec.Root{HostPath: "/"}, Hooks: []launchspec.Hook{hook("")}}} {
		scratch := ""
		if spec.Root.HostPath != "" {
			scratch = t.TempDir()
		}
		if err := runHooks(spec, scratch); err == nil {
			t.Errorf("hooks of %+v run", spec.Root)
		}
	}
}
