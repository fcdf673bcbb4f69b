//go:build ignore

// Writes syscalls.txt from the tables of golang.org/x/sys/unix: a line per system call
// with its numbers on amd64, 386, arm64 and arm, "-" where it does not exist.
package main

import (
	"bytes"
	"fmt"
	"log"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var arches = []string{"amd64", "386", "arm64", "arm"}

// kernelNames are those that x/sys calls otherwise.
var kernelNames = map[string]map[string]string{
	"arm64": {"fstatat": "newfstatat"},
	"arm":   {"arm_sync_file_range": "sync_file_range2"},
}

var define = regexp.MustCompile(`(?m)^\tSYS_([A-Z0-9_]+)\s+= (\d+)`)

func main() {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.org/x/sys").Output()
	if err != nil {
		log.Fatal(err)
	}
	table := map[string]map[string]string{}
	add := func(name, arch, number string) {
		if table[name] == nil {
			table[name] = map[string]string{}
		}
		table[name][arch] = number
	}
	for _, arch := range arches {
		source, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "unix", "zsysnum_linux_"+arch+".go"))
		if err != nil {
			log.Fatal(err)
		}
		for _, m := range define.FindAllStringSubmatch(string(source), -1) {
			name := strings.ToLower(m[1])
			add(name, arch, m[2])
			if other, ok := kernelNames[arch][name]; ok {
				add(other, arch, m[2])
			}
		}
	}
	var out bytes.Buffer
	fmt.Fprintln(&out, "# Made by gen.go from golang.org/x/sys. name", strings.Join(arches, " "))
	for _, name := range slices.Sorted(maps.Keys(table)) {
		fmt.Fprint(&out, name)
		for _, arch := range arches {
			number := table[name][arch]
			if number == "" {
				number = "-"
			}
			fmt.Fprint(&out, " ", number)
		}
		fmt.Fprintln(&out)
	}
	if err := os.WriteFile("syscalls.txt", out.Bytes(), 0o644); err != nil {
		log.Fatal(err)
	}
}
