//go:build linux

package main

import (
	"bytes"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpenTerminal(t *testing.T) {
	var fs unix.Statfs_t
	if os.Geteuid() != 0 || unix.Statfs("/dev/pts", &fs) != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		if os.Getenv("VK_METAL_REQUIRE") == "all" {
			t.Fatal("needs root and a devpts")
		}
		t.Skip("needs root and a devpts")
	}
	master, slave, err := openTerminal()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(master)
	defer unix.Close(slave)
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(slave))
	if want := "/dev/pts/" + strconv.Itoa(number); err != nil || name != want {
		t.Errorf("the slave is %s, want %s (%v)", name, want, err)
	}
	if _, err := unix.Write(slave, []byte("out\n")); err != nil {
		t.Fatal(err)
	}
	var got []byte
	for !bytes.HasSuffix(got, []byte("\n")) { // it may come in parts
		buf := make([]byte, 16)
		n, err := unix.Read(master, buf)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	if string(got) != "out\r\n" {
		t.Errorf("read %q", got)
	}
}

// TestDescriptorsPass sends one over a channel, which must not lose or invent any.
func TestDescriptorsPass(t *testing.T) {
	from, to, err := newChannels()
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(from.fd)
	defer unix.Close(to.fd)
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if err := from.sendFD(childMessage{Terminal: true}, null); err != nil {
		t.Fatal(err)
	}
	message, err := to.receive()
	if err != nil || !message.Terminal || message.fd < 0 || message.fd == null {
		t.Fatalf("got %+v, %v", message, err)
	}
	unix.Close(message.fd)
	if err := from.send(childMessage{}); err != nil {
		t.Fatal(err)
	}
	if message, err := to.receive(); err != nil || message.fd != -1 {
		t.Errorf("got %+v, %v", message, err)
	}
}
