package linuxns

import (
	"encoding/binary"
	"slices"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What this process does to nftables comes back to each of its Watches, whatever part of it
// made the change: 120,000 messages for the Services of a big cluster, more than any buffer
// holds, and a Watch that lost messages has everything read back. So the kernel is told not to
// deliver them.

// echoes are the netlink ports that this process changes nftables by, and who would hear of it.
var echoes = struct {
	mu     sync.Mutex
	spaces map[nsID]*echoSpace
}{spaces: map[nsID]*echoSpace{}}

// nsID is one network namespace: ports have a meaning in theirs only.
type nsID struct{ dev, inode uint64 }

type echoSpace struct {
	ports   []uint32
	watches []*Watch
	commits sync.RWMutex // see Quietly
}

// spaceOf is nil where nobody of this process changes nftables.
func spaceOf(fd int) *echoSpace {
	id, err := idOf(fd)
	if err != nil {
		return nil
	}
	echoes.mu.Lock()
	defer echoes.mu.Unlock()
	return echoes.spaces[id]
}

func idOf(fd int) (id nsID, err error) {
	var s unix.Stat_t
	if err := unix.Fstat(fd, &s); err != nil {
		return id, err
	}
	return nsID{s.Dev, s.Ino}, nil
}

// changeEchoes changes what is known of the namespace fd and tells its Watches. It is best
// effort: who hears of the process's own changes knows them by their port.
func changeEchoes(fd int, change func(*echoSpace)) {
	id, err := idOf(fd)
	if err != nil {
		return
	}
	echoes.mu.Lock()
	defer echoes.mu.Unlock()
	s := echoes.spaces[id]
	if s == nil {
		s = &echoSpace{}
		echoes.spaces[id] = s
	}
	change(s)
	for _, w := range s.watches {
		w.ignore(s.ports)
	}
	if len(s.ports)+len(s.watches) == 0 {
		delete(echoes.spaces, id)
	}
}

// Silence has no Watch of this process get messages about the changes that a nftables socket in
// the namespace nsFD makes, known by its netlink port, until Unsilence.
func Silence(nsFD int, port uint32) {
	changeEchoes(nsFD, func(s *echoSpace) { s.ports = append(s.ports, port) })
}

// Unsilence is for a socket that is about to be closed: somebody else may get its port.
func Unsilence(nsFD int, port uint32) {
	changeEchoes(nsFD, func(s *echoSpace) {
		if i := slices.Index(s.ports, port); i >= 0 {
			s.ports = slices.Delete(s.ports, i, i+1)
		}
	})
}

func listen(nsFD int, w *Watch) {
	changeEchoes(nsFD, func(s *echoSpace) { s.watches = append(s.watches, w) })
}

// unlisten looks for the Watch everywhere: its namespace's descriptor may be closed.
func unlisten(w *Watch) {
	echoes.mu.Lock()
	defer echoes.mu.Unlock()
	for id, s := range echoes.spaces {
		s.watches = slices.DeleteFunc(s.watches, func(o *Watch) bool { return o == w })
		if len(s.ports)+len(s.watches) == 0 {
			delete(echoes.spaces, id)
		}
	}
}

// ignore has the kernel drop what comes of these ports. All messages of one delivery are of one
// transaction, so the first one's port is everybody's.
func (w *Watch) ignore(ports []uint32) {
	program := dropPorts(ports)
	_ = unix.SetsockoptSockFprog(w.s.GetFd(), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{
		Len: uint16(len(program)), Filter: unsafe.SliceData(program),
	})
}

// dropPorts is a classic BPF program over a netlink message.
func dropPorts(ports []uint32) []unix.SockFilter {
	const (
		portAt = 12 // in nlmsghdr
		most   = 100
	)
	ports = ports[:min(len(ports), most)] // jumps are 8 bits wide
	program := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: portAt}}
	for i, port := range ports {
		var native [4]byte
		binary.NativeEndian.PutUint32(native[:], port)
		program = append(program, unix.SockFilter{
			Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: uint8(len(ports) - i), K: binary.BigEndian.Uint32(native[:]),
		})
	}
	return append(program,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 1<<32 - 1},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
}
