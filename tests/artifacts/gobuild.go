package artifacts

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/vk-metal/vk-metal/tests/progress"
)

// goProgram is one program of a Go module.
type goProgram struct {
	name    string   // of the artifact and of the file in it
	module  string   // directory of the module
	pkg     string   // import path, or a directory that begins with "./"
	test    bool     // a test binary (go test -c)
	ldflags []string // besides -s -w
	tags    string
}

// recipe is keyed by the Go version, the flags, the versions of all modules that the
// program's packages come from and the content of those that lie in the main module.
func (p goProgram) recipe(ctx context.Context) (Recipe, error) {
	deps, err := p.deps(ctx)
	if err != nil {
		return Recipe{}, err
	}
	inputs := []string{runtime.GOARCH, p.pkg, p.tags, strings.Join(p.ldflags, " ")}
	modules := map[string]bool{}
	for _, dep := range deps.foreign {
		modules[dep] = true
	}
	inputs = append(inputs, sortedKeys(modules)...)
	for _, dir := range deps.local {
		content, err := HashTree(dir, []string{"."}, func(path string) bool {
			return filepath.Dir(path) == dir && !strings.HasSuffix(path, "_test.go")
		})
		if err != nil {
			return Recipe{}, err
		}
		inputs = append(inputs, content)
	}
	build := func(ctx context.Context, dir string, step *progress.Step) error {
		return p.build(ctx, filepath.Join(dir, p.name), step, len(deps.packages))
	}
	return Recipe{Name: p.name, Inputs: inputs, Build: build}, nil
}

// goDeps is what a program is made of.
type goDeps struct {
	packages []string
	foreign  []string // module@version or the Go version
	local    []string // directories in the main module
}

// deps lists the packages that the program is made of. `go list` is quick (under a
// second for all of Kubernetes) and exact: a change elsewhere in go.sum builds nothing.
func (p goProgram) deps(ctx context.Context) (goDeps, error) {
	const format = `{{.ImportPath}} {{with .Module}}{{if .Main}}main{{else}}{{.Path}}@{{with .Replace}}{{.Path}}@{{.Version}}{{else}}{{.Version}}{{end}}{{end}}{{else}}std{{end}} {{.Dir}}`
	args := []string{"list", "-deps", "-tags", p.tags, "-f", format}
	if p.test {
		args = append(args, "-test")
	}
	out, err := p.goCommand(ctx, append(args, p.pkg)...).Output()
	if err != nil {
		return goDeps{}, fmt.Errorf("list what %s is made of: %w", p.name, withStderr(err))
	}
	version, err := p.goCommand(ctx, "env", "GOVERSION").Output()
	if err != nil {
		return goDeps{}, fmt.Errorf("ask for the Go version: %w", withStderr(err))
	}
	deps := goDeps{foreign: []string{strings.TrimSpace(string(version))}}
	for line := range strings.Lines(string(out)) {
		deps.add(strings.Fields(line))
	}
	return deps, nil
}

// add takes the fields that deps asked for. Test variants have more in between
// ("pkg [pkg.test]") and generated mains no directory.
func (d *goDeps) add(fields []string) {
	d.packages = append(d.packages, fields[0])
	dir := fields[len(fields)-1]
	for _, field := range fields[1:] {
		switch {
		case field == "main" && filepath.IsAbs(dir):
			if !slices.Contains(d.local, dir) {
				d.local = append(d.local, dir)
			}
		case strings.Contains(field, "@"):
			d.foreign = append(d.foreign, field)
		}
	}
}

// build compiles the program into file and counts the packages on the way.
func (p goProgram) build(ctx context.Context, file string, step *progress.Step, packages int) error {
	args := []string{"build"}
	if p.test {
		args = []string{"test", "-c", "-vet=off"}
	}
	flags := strings.Join(append([]string{"-s", "-w"}, p.ldflags...), " ")
	args = append(args, "-v", "-trimpath", "-tags", p.tags, "-ldflags", flags, "-o", file, p.pkg)
	cmd := p.goCommand(ctx, args...)
	stderr, err := cmd.StderrPipe()
	if err != nil {
		return fmt.Errorf("run the Go compiler: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run the Go compiler: %w", err)
	}
	messages := countPackages(bufio.NewScanner(stderr), step, packages)
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("go %s: %w:\n%s", strings.Join(args, " "), err, messages)
	}
	return nil
}

// countPackages reads `go build -v`, which prints the import path of each package
// that it has to compile, and returns everything else that was said.
func countPackages(lines *bufio.Scanner, step *progress.Step, of int) string {
	var messages bytes.Buffer
	var count atomic.Int64
	for lines.Scan() {
		line := lines.Text()
		if strings.ContainsAny(line, " \t") && !strings.HasPrefix(line, "go: downloading ") {
			messages.WriteString(line + "\n")
			continue
		}
		if name, found := strings.CutPrefix(line, "go: downloading "); found {
			step.Note("downloading %s", name)
			continue
		}
		step.Note("%d packages compiled (of %d at most)", count.Add(1), of)
	}
	return messages.String()
}

func (p goProgram) goCommand(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = p.module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	return cmd
}

// withStderr adds what the command said to its exit code.
func withStderr(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return err
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for key := range set {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
