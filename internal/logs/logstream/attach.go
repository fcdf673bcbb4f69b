package logstream

// Names of what input and terminals add to a stream.
const (
	// Socket lies beside the stream directories: a SOCK_SEQPACKET socket of the log
	// writer, which only root can reach.
	Socket = ".socket"
	// StdinFIFO is there where the container has stdin and no terminal. The log writer
	// holds its write end.
	StdinFIFO = "stdin"
	// StdinClosed marks that stdinOnce's one client has come and gone.
	StdinClosed = "stdin.closed"
)

// The first byte of a packet on Socket says what it is. Attach and Terminal come first, and
// are answered with OK or Failed.
const (
	// PacketAttach carries an Attach in JSON.
	PacketAttach = 'A'
	// PacketTerminal carries a stream's name and, as SCM_RIGHTS, its pseudo-terminal's
	// master. OK says that it is safe from the log writer's end.
	PacketTerminal = 'T'
	PacketOK       = 'K'
	PacketFailed   = 'E' // and why

	PacketStdin    = 'I' // and bytes
	PacketStdinEnd = 'Z'
	PacketResize   = 'S' // and width and height, two bytes each, most significant first

	PacketStdout = 'O' // and bytes
	PacketStderr = 'R' // and bytes
)

// MaxPacket is the longest packet, its first byte included.
const MaxPacket = 32<<10 + 1

// Attach asks for a container's output from now on, until it ends, and may bring input.
type Attach struct {
	Stream string `json:"stream"` // the name of its directory
	Stdin  bool   `json:"stdin,omitempty"`
	Stdout bool   `json:"stdout,omitempty"`
	Stderr bool   `json:"stderr,omitempty"`
}
