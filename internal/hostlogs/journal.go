package hostlogs

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"
)

// queryBudget bounds one query, as a kubelet's: a pattern may take for ever.
const queryBudget = 30 * time.Second

// copyServices writes what the services have said: those in the journal first, then files of
// their names. Errors are lines of the answer, as with a kubelet: its head is gone by then.
func (h *handler) copyServices(ctx context.Context, w io.Writer, q *query) {
	ctx, cancel := context.WithTimeout(ctx, queryBudget)
	defer cancel()
	units, others := h.resolve(h.journaled(ctx), q.services)
	if len(units) > 0 {
		h.copyJournal(ctx, w, arguments(units, q.options))
	}
	if len(others) > 0 && q.options != (options{}) {
		fmt.Fprintf(w, "\noptions present and query resolved to log files for %v\ntry without specifying options\n", others)
		return
	}
	for _, name := range others {
		h.copyFile(w, name)
	}
}

// resolve tells the units of services that the journal knows from the services that it does not.
func (h *handler) resolve(known, services []string) (units, others []string) {
	for _, name := range services {
		found := false
		for _, unit := range append([]string{name}, h.o.Units[name]...) {
			if unit += ".service"; slices.Contains(known, unit) {
				units, found = append(units, unit), true
			}
		}
		if !found {
			others = append(others, name)
		}
	}
	return units, others
}

// journaled are the units that the journal has lines of: their own, or of a container's output.
func (h *handler) journaled(ctx context.Context) []string {
	var units []string
	for _, field := range []string{"_SYSTEMD_UNIT", "OBJECT_SYSTEMD_UNIT"} {
		out, err := h.journalctl(ctx, "--field="+field).Output()
		if err != nil {
			continue
		}
		units = append(units, strings.Split(strings.TrimSpace(string(out)), "\n")...)
	}
	return units
}

func (h *handler) copyJournal(ctx context.Context, w io.Writer, args []string) {
	cmd := h.journalctl(ctx, args...)
	cmd.Stdout, cmd.Stderr = w, w
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		fmt.Fprint(w, "\nerror: journal output not available\n")
	}
}

// journalctl has nothing of the agent's environment, and no shell reads its arguments.
func (h *handler) journalctl(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.o.Journalctl, args...)
	cmd.Env = []string{"LC_ALL=C.UTF-8"}
	cmd.WaitDelay = time.Second
	return cmd
}

// arguments are journalctl's. Whatever a client wrote is the value of an option, in one argument.
func arguments(units []string, o options) []string {
	args := []string{"--utc", "--no-pager", "--output=short-precise"}
	if o.since != nil {
		args = append(args, "--since="+journalTime(*o.since))
	}
	if o.until != nil {
		args = append(args, "--until="+journalTime(*o.until))
	}
	if o.tail != nil {
		args = append(args, "--lines="+strconv.Itoa(*o.tail))
	}
	for _, unit := range units {
		args = append(args, "--unit="+unit)
	}
	if o.pattern != "" {
		args = append(args, "--grep="+o.pattern)
	}
	if o.boot != nil {
		args = append(args, "--boot="+strconv.Itoa(*o.boot))
	}
	return args
}

// journalTime says the time zone, which journalctl otherwise takes from the server.
func journalTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05 UTC") }

// copyFile writes the first file there is for a service: name, name.log, name/name.log.
func (h *handler) copyFile(w io.Writer, name string) {
	for _, candidate := range []string{name, name + ".log", name + "/" + name + ".log"} {
		file, err := h.files.Open(candidate)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			fmt.Fprintf(w, "\nerror getting log for %s: %v\n", name, err)
			return
		}
		info, err := file.Stat()
		if err == nil && !info.IsDir() {
			_, err = io.Copy(w, file)
			file.Close()
			if err != nil {
				fmt.Fprintf(w, "\nerror getting log for %s: %v\n", name, err)
			}
			return
		}
		file.Close()
	}
	fmt.Fprintf(w, "\nlog not found for %s\n", name)
}
