package wireguard

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/vk-metal/vk-metal/internal/linuxns"
)

// userDevices are WireGuard's own implementation in user space, on tun links; all else, also
// how they are configured, is as with the kernel's.
type userDevices struct {
	*kernelDevices
	t     testing.TB
	names [slots]string // the sockets to configure them by are the host's

	mu      sync.Mutex
	running map[string]*userDevice
}

type userDevice struct {
	dev  *device.Device
	uapi net.Listener
	done chan struct{}
}

// newUserDevices has no devices yet. They outlive agents, and go with the test.
func newUserDevices(t testing.TB, ns *linuxns.NS) *userDevices {
	t.Helper()
	own, err := linuxns.Open(fmt.Sprintf("/proc/self/fd/%d", ns.FD()))
	must(t, err)
	u := &userDevices{kernelDevices: &kernelDevices{ns: own}, t: t, running: map[string]*userDevice{}}
	id := make([]byte, 4)
	_, _ = rand.Read(id)
	for i := range u.names {
		u.names[i] = "wt" + hex.EncodeToString(id) + fmt.Sprint(i)
	}
	t.Cleanup(func() {
		for _, name := range u.names {
			u.end(name)
		}
		_ = u.kernelDevices.Close()
		_ = own.Close()
	})
	return u
}

func (u *userDevices) kind() string { return "tuntap" }

// Close implements devices: agents come and go.
func (u *userDevices) Close() error { return nil }

// quiet is a tun link whose device is up from the start: the library would look at it from
// threads that are in another namespace.
type quiet struct {
	tun.Device
	events chan tun.Event
}

func (q quiet) Events() <-chan tun.Event { return q.events }
func (q quiet) MTU() (int, error)        { return defaultMTU, nil }

func (q quiet) Close() error {
	close(q.events)
	return q.Device.Close()
}

func (u *userDevices) add(_ *netlink.Handle, name string) error {
	u.end(name)
	return u.ns.Do(func() error {
		link, err := tun.CreateTUN(name, defaultMTU)
		if err != nil {
			return err
		}
		d := &userDevice{done: make(chan struct{})}
		q := quiet{link, make(chan tun.Event)}
		go func() { // what the link tells is not asked for
			for range link.Events() {
			}
		}()
		d.dev = device.NewDevice(q, conn.NewDefaultBind(), device.NewLogger(device.LogLevelSilent, ""))
		if err := d.dev.Up(); err != nil {
			return err
		}
		file, err := ipc.UAPIOpen(name)
		if err != nil {
			return err
		}
		d.uapi, err = ipc.UAPIListen(name, file)
		_ = file.Close()
		if err != nil {
			return err
		}
		go u.serve(d)
		u.mu.Lock()
		u.running[name] = d
		u.mu.Unlock()
		return nil
	})
}

// serve configures the device from inside its namespace, where its sockets belong.
func (u *userDevices) serve(d *userDevice) {
	defer close(d.done)
	var handlers sync.WaitGroup
	for {
		c, err := d.uapi.Accept()
		if err != nil {
			break
		}
		handlers.Go(func() {
			_ = u.ns.Do(func() error {
				d.dev.IpcHandle(c)
				return nil
			})
		})
	}
	handlers.Wait()
}

func (u *userDevices) end(name string) {
	u.mu.Lock()
	d := u.running[name]
	delete(u.running, name)
	u.mu.Unlock()
	if d == nil {
		return
	}
	_ = d.uapi.Close()
	<-d.done
	d.dev.Close()
}
