package systemd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sync/semaphore"

	"github.com/vk-metal/vk-metal/internal/paths"
)

// DefaultLauncher is where the packages put the launcher.
const DefaultLauncher = "/usr/lib/vk-metal/vk-metal-launch"

// Options configure a Manager.
type Options struct {
	Layout   paths.Layout
	Launcher string // DefaultLauncher when empty
	// Labels says that containers have SELinux labels: the kernel then does not end a command with its
	// launcher (PR_SET_PDEATHSIG is cleared by execve into another label), and Exec does.
	Labels bool
	// Logger gets what happens to the connection; slog.Default() when nil.
	Logger *slog.Logger
	// Dial connects to the bus; the system bus when nil.
	Dial func(ctx context.Context) (*dbus.Conn, error)
}

// Manager is the Runtime and Executor on a real systemd. Its methods are safe for
// concurrent use. It reconnects by itself; calls made meanwhile wait for that.
type Manager struct {
	opts   Options
	cgroup cgroupVersion
	log    *slog.Logger
	ctx    context.Context
	events *eventQueue
	jobs   *jobTable
	calls  *semaphore.Weighted // without an answer yet, maxCalls at most
	slices *semaphore.Weighted // being made

	mu         sync.Mutex
	conn       *dbus.Conn
	connected  chan struct{} // closed while conn is usable
	identities map[string]knownUnit
	pulse      time.Time // of the bus's reader
}

// knownUnit is what never changes about a unit, and its main process as a signal told it last.
type knownUnit struct {
	identity Identity
	slice    string
	group    string // path of the cgroup, once asked for
	begun    bool   // by our Start
	main     mainProcess
}

// mainProcess is one that runs; pid is 0 for none that is known to.
type mainProcess struct {
	pid     int
	started time.Time
}

var (
	_ Runtime  = (*Manager)(nil)
	_ Executor = (*Manager)(nil)
)

// NewManager connects to systemd and follows its signals until ctx ends.
func NewManager(ctx context.Context, opts Options) (*Manager, error) {
	version, err := detectCgroup()
	if err != nil {
		return nil, err
	}
	if opts.Launcher == "" {
		opts.Launcher = DefaultLauncher
	}
	if opts.Logger == nil {
		opts.Logger = slog.Default()
	}
	if opts.Dial == nil {
		opts.Dial = dialSystemBus
	}
	m := &Manager{
		opts: opts, cgroup: version, log: opts.Logger, ctx: ctx,
		events: newEventQueue(), jobs: newJobTable(), calls: semaphore.NewWeighted(maxCalls), slices: semaphore.NewWeighted(slicesAtATime),
		connected: make(chan struct{}), identities: map[string]knownUnit{}, pulse: time.Now(),
	}
	signals, err := m.connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	go m.follow(ctx, signals)
	go m.events.pump(ctx)
	return m, nil
}

// Events implements Runtime.
func (m *Manager) Events() <-chan Event { return m.events.out }

// connection waits until there is one.
func (m *Manager) connection(ctx context.Context) (*dbus.Conn, error) {
	for {
		m.mu.Lock()
		conn, connected := m.conn, m.connected
		m.mu.Unlock()
		if conn != nil {
			return conn, nil
		}
		select {
		case <-connected:
		case <-ctx.Done():
			return nil, fmt.Errorf("wait for connection to systemd: %w", ctx.Err())
		case <-m.ctx.Done():
			return nil, fmt.Errorf("connect to systemd: %w", errClosed)
		}
	}
}

var errClosed = errors.New("manager is closed")

func (m *Manager) remember(unit string, known knownUnit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.identities[unit] = known
}

func (m *Manager) rememberGroup(unit, group string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if known, ok := m.identities[unit]; ok {
		known.group = group
		m.identities[unit] = known
	}
}

// rememberMain takes up what a signal says of a unit's main process. It says whether that is
// no news: where our Start began the unit, its answer tells that the process runs.
func (m *Manager) rememberMain(unit string, main mainProcess) (told bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, ok := m.identities[unit]
	if !ok {
		return false
	}
	known.main = main
	m.identities[unit] = known
	return known.begun && main.pid != 0
}

func (m *Manager) known(unit string) (knownUnit, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known, ok := m.identities[unit]
	return known, ok
}

func (m *Manager) forget(unit string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.identities, unit)
}
