package cadvisor

import "github.com/vk-metal/vk-metal/systemd"

func cpuPressure(c *Cgroup) *systemd.Pressure    { return c.Stats.CPUPressure }
func memoryPressure(c *Cgroup) *systemd.Pressure { return c.Stats.MemoryPressure }
func ioPressure(c *Cgroup) *systemd.Pressure     { return c.Stats.IOPressure }

// some is how long some tasks waited for a resource, full how long no task could go on; both
// in microseconds.
func some(p *systemd.Pressure) uint64 { return p.Some.Total }
func full(p *systemd.Pressure) uint64 { return p.Full.Total }

// pressure is what the kernel tells of one resource (PSI) on cgroup v2, and nothing on v1.
func pressure(resource, kind, help string, of func(c *Cgroup) *systemd.Pressure, total func(*systemd.Pressure) uint64) series {
	return counter("container_pressure_"+resource+"_"+kind+"_seconds_total", help, func(c *Cgroup) []sample {
		p := of(c)
		if p == nil {
			return nil
		}
		return one(float64(total(p)) / 1e6)
	})
}
