package seccomp

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Instructions of classic BPF (linux/bpf_common.h) and offsets in struct seccomp_data.
const (
	opLoad, opAnd, opReturn              = 0x20, 0x54, 0x06
	opJump, opJumpEq, opJumpGt, opJumpGe = 0x05, 0x15, 0x25, 0x35

	dataNr, dataArch, dataArgs = 0, 4, 16

	// maxInstructions is the kernel's BPF_MAXINSNS.
	maxInstructions = 4096
)

// auditArches are AUDIT_ARCH_* (linux/audit.h). x32 shares x86-64's.
var auditArches = map[specs.Arch]uint32{
	specs.ArchX86_64: 0xC000003E, specs.ArchX86: 0x40000003, specs.ArchX32: 0xC000003E,
	specs.ArchAARCH64: 0xC00000B7, specs.ArchARM: 0x40000028,
}

// Compile makes the program (an array of struct sock_filter in the host's byte order) for a
// container whose bounding set has these capabilities. Calls of an architecture that the
// profile does not list end the process.
func (p *Profile) Compile(caps []string, host Host) ([]byte, error) {
	arches, err := p.architectures(host)
	if err != nil {
		return nil, err
	}
	var blocks []block
	for _, arch := range arches {
		policy, err := p.policyFor(arch, caps, host)
		if err != nil {
			return nil, err
		}
		if arch == specs.ArchX32 {
			blocks[0].ranges = joinX32(blocks[0].ranges, policy.ranges())
			continue
		}
		blocks = append(blocks, block{auditArches[arch], policy.ranges()})
	}
	if arches[0] == specs.ArchX86_64 && !slices.Contains(arches, specs.ArchX32) {
		blocks[0].ranges = joinX32(blocks[0].ranges, []span{{x32Bit, leaf{verdict: verdictKillProcess}}, {^uint32(0), blocks[0].ranges[len(blocks[0].ranges)-1].leaf}})
	}
	program := assemble(blocks)
	if len(program) > maxInstructions {
		return nil, fmt.Errorf("it makes %d instructions, the kernel takes at most %d", len(program), maxInstructions)
	}
	return encode(program), nil
}

// leaf is what is done with a call: its clauses in order, then the verdict.
type leaf struct {
	clauses []clause
	verdict uint32
}

func (l leaf) equal(o leaf) bool {
	return len(l.clauses) == 0 && len(o.clauses) == 0 && l.verdict == o.verdict
}

// span is a range of numbers with one leaf: from first to before the next span's first.
type span struct {
	first uint32
	leaf  leaf
}

// block is the part of a program for one audit architecture.
type block struct {
	arch   uint32
	ranges []span
}

// ranges cuts all 32-bit numbers into as few spans as can be.
func (p *policy) ranges() []span {
	var out []span
	add := func(first uint32, l leaf) {
		if n := len(out); n > 0 && out[n-1].leaf.equal(l) {
			return
		}
		out = append(out, span{first, l})
	}
	next := uint32(0) // the first number that no span covers yet
	rest := func(upTo uint32) {
		if next < upTo && next <= p.last {
			add(next, leaf{verdict: p.base})
		}
		if after := max(next, p.last+1); after < upTo {
			add(after, leaf{verdict: p.newer})
		}
	}
	for _, nr := range slices.Sorted(maps.Keys(p.clauses)) {
		rest(nr)
		add(nr, p.leafOf(nr))
		next = nr + 1
	}
	rest(^uint32(0))
	add(^uint32(0), leaf{verdict: p.base}) // a tracer's "skip this call"
	return out
}

func (p *policy) leafOf(nr uint32) leaf {
	clauses := p.clauses[nr]
	if last := clauses[len(clauses)-1]; len(last.conditions) == 0 {
		return leaf{verdict: last.verdict}
	}
	if nr > p.last {
		return leaf{clauses, p.newer}
	}
	return leaf{clauses, p.base}
}

// joinX32 takes the numbers from x32Bit on from the second list.
func joinX32(native, x32 []span) []span {
	at, _ := slices.BinarySearchFunc(native, uint32(x32Bit), func(s span, nr uint32) int { return compare(s.first, nr) })
	out := native[:at:at]
	at, found := slices.BinarySearchFunc(x32, uint32(x32Bit), func(s span, nr uint32) int { return compare(s.first, nr) })
	if !found && at > 0 {
		out = append(out, span{x32Bit, x32[at-1].leaf})
	}
	return append(out, x32[at:]...)
}

func compare(a, b uint32) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// instruction is a struct sock_filter.
type instruction struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// assemble chooses the block by architecture; each is a binary search over its spans.
func assemble(blocks []block) []instruction {
	program := []instruction{{opLoad, 0, 0, dataArch}}
	for _, b := range blocks {
		body := append([]instruction{{opLoad, 0, 0, dataNr}}, search(b.ranges)...)
		program = append(program, instruction{opJumpEq, 1, 0, b.arch}, instruction{opJump, 0, 0, uint32(len(body))})
		program = append(program, body...)
	}
	return append(program, instruction{opReturn, 0, 0, verdictKillProcess})
}

// search finds the span of the number in the accumulator.
func search(spans []span) []instruction {
	if len(spans) == 1 {
		return spans[0].leaf.code()
	}
	middle := len(spans) / 2
	low, high := search(spans[:middle]), search(spans[middle:])
	if len(low) <= 255 {
		out := append([]instruction{{opJumpGe, uint8(len(low)), 0, spans[middle].first}}, low...)
		return append(out, high...)
	}
	out := append([]instruction{{opJumpGe, 0, 1, spans[middle].first}, {opJump, 0, 0, uint32(len(low))}}, low...)
	return append(out, high...)
}

// code tries each clause in turn; the accumulator is lost.
func (l leaf) code() []instruction {
	var out []instruction
	for _, c := range l.clauses {
		out = append(out, c.code()...)
	}
	return append(out, instruction{opReturn, 0, 0, l.verdict})
}

// code is the clause's comparisons and its verdict; where one fails it goes on behind.
func (c clause) code() []instruction {
	out := []instruction{{opReturn, 0, 0, c.verdict}}
	for _, cond := range slices.Backward(c.conditions) {
		out = append(cond.code(len(out)), out...)
	}
	return out
}

// Arguments are little-endian on all our architectures: the low word comes first.
func (c condition) lowWord() uint32  { return dataArgs + 8*uint32(c.arg) }
func (c condition) highWord() uint32 { return c.lowWord() + 4 }

// code falls through when the condition holds, and else jumps over `rest` instructions. At
// most six conditions of at most six instructions make a clause: a jump always reaches.
func (c condition) code(rest int) []instruction {
	high, low := uint32(c.value>>32), uint32(c.value)
	over := func(behind int) uint8 { return uint8(rest + behind) }
	switch c.op {
	case specs.OpEqualTo:
		return []instruction{
			{opLoad, 0, 0, c.highWord()},
			{opJumpEq, 0, over(2), high},
			{opLoad, 0, 0, c.lowWord()},
			{opJumpEq, 0, over(0), low},
		}
	case specs.OpNotEqual:
		return []instruction{
			{opLoad, 0, 0, c.highWord()},
			{opJumpEq, 0, 2, high},
			{opLoad, 0, 0, c.lowWord()},
			{opJumpEq, over(0), 0, low},
		}
	case specs.OpMaskedEqual:
		return []instruction{
			{opLoad, 0, 0, c.highWord()},
			{opAnd, 0, 0, high},
			{opJumpEq, 0, over(3), uint32(c.masked >> 32)},
			{opLoad, 0, 0, c.lowWord()},
			{opAnd, 0, 0, low},
			{opJumpEq, 0, over(0), uint32(c.masked)},
		}
	case specs.OpGreaterThan:
		return c.ordered(high, over, instruction{opJumpGt, 0, over(0), low})
	case specs.OpGreaterEqual:
		return c.ordered(high, over, instruction{opJumpGe, 0, over(0), low})
	case specs.OpLessThan:
		return c.less(high, over, instruction{opJumpGe, over(0), 0, low})
	default: // OpLessEqual
		return c.less(high, over, instruction{opJumpGt, over(0), 0, low})
	}
}

// ordered holds with a greater high word, or an equal one and the last comparison.
func (c condition) ordered(high uint32, over func(int) uint8, last instruction) []instruction {
	return []instruction{
		{opLoad, 0, 0, c.highWord()},
		{opJumpGt, 3, 0, high},
		{opJumpEq, 0, over(2), high},
		{opLoad, 0, 0, c.lowWord()},
		last,
	}
}

// less holds with a smaller high word, or an equal one and the last comparison.
func (c condition) less(high uint32, over func(int) uint8, last instruction) []instruction {
	return []instruction{
		{opLoad, 0, 0, c.highWord()},
		{opJumpGt, over(3), 0, high},
		{opJumpEq, 0, 2, high},
		{opLoad, 0, 0, c.lowWord()},
		last,
	}
}

func encode(program []instruction) []byte {
	out := make([]byte, 0, 8*len(program))
	for _, i := range program {
		out = binary.NativeEndian.AppendUint16(out, i.code)
		out = append(out, i.jt, i.jf)
		out = binary.NativeEndian.AppendUint32(out, i.k)
	}
	return out
}
