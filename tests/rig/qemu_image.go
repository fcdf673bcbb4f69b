package rig

import (
	"context"
	_ "embed"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

//go:embed rig-agent.service
var agentUnit []byte

// vmModules are what the initramfs needs to find the disk and to mount it with quotas.
const vmModules = "virtio_pci\nvirtio_blk\next4\ncrc32c_generic\nquota_v2\n"

// vmMasked would wait for a device manager, or compile Debian's own AppArmor profiles, which
// software emulation is too slow for.
var vmMasked = []string{
	"systemd-udevd.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket", "systemd-udev-trigger.service",
	"systemd-udev-settle.service", "getty@tty1.service", "serial-getty@ttyS0.service", "console-getty.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer", "fstrim.timer", "apparmor.service",
}

// vmDisabled are started by the tests that want them.
var vmDisabled = []string{
	"nfs-server.service", "nfs-client.target", "nfs-blkmap.service", "rpcbind.service", "rpcbind.socket",
}

// vmSELinux makes systemd load the policy where the kernel was told to have SELinux, and vmLabel
// labels the files as it wants them.
const (
	vmSELinux = "SELINUX=permissive\nSELINUXTYPE=default\n"
	vmLabel   = "setfiles -F -e /proc -e /sys /etc/selinux/default/contexts/files/file_contexts /"
)

// vmRecipe is what of a virtual machine's root the program decides.
func (c RootConfig) vmRecipe() string {
	if !c.VM {
		return ""
	}
	return string(agentUnit) + vmModules + strings.Join(vmMasked, " ") + strings.Join(vmDisabled, " ") + vmSELinux + vmLabel + imageSize + imageFeatures
}

// configureVM gives a root what only a virtual machine needs.
func (b *rootBuild) configureVM(ctx context.Context) error {
	if !b.cfg.VM {
		return nil
	}
	for path, content := range map[string]string{
		"etc/initramfs-tools/conf.d/rig":       "MODULES=list\nCOMPRESS=lz4\n",
		"etc/initramfs-tools/modules":          vmModules,
		"etc/modules-load.d/rig.conf":          "virtio_net\n",
		"etc/systemd/system/rig-agent.service": string(agentUnit),
		"etc/selinux/config":                   vmSELinux,
	} {
		path = filepath.Join(b.tmp, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return fmt.Errorf("configure root: %w", err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("configure root: %w", err)
		}
	}
	script := strings.Join([]string{
		"systemctl -q enable rig-agent.service",
		"systemctl -q mask " + strings.Join(vmMasked, " "),
		"systemctl -q disable " + strings.Join(vmDisabled, " "),
		"update-initramfs -u -k all",
		vmLabel,
	}, "; ")
	return b.command(ctx, "chroot", b.tmp, "/bin/sh", "-ec", script)
}

// The files of a virtual machine's image in the cache.
const (
	imageDisk   = "disk.raw"
	imageKernel = "vmlinuz"
	imageInitrd = "initrd.img"
	// imageSize is the size of the file system; the file is sparse.
	imageSize = "8G"
	// imageFeatures are those of the file system besides its usual ones: it counts by project.
	imageFeatures = "quota,project"
)

// EnsureImage returns the directory of the disk image, kernel and initramfs made from a
// root for virtual machines, and builds what is missing.
func EnsureImage(ctx context.Context, cfg RootConfig, progress io.Writer) (string, error) {
	root, err := EnsureRoot(ctx, cfg, progress)
	if err != nil {
		return "", err
	}
	if progress == nil {
		progress = io.Discard
	}
	return buildOnce(filepath.Base(root)+".image", func(tmp string) error {
		fmt.Fprintf(progress, "root: making a disk image of %s\n", cfg.Suite)
		return makeImage(ctx, root, tmp)
	})
}

// makeImage writes the files of an image into dir.
func makeImage(ctx context.Context, root, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	log, err := os.Create(dir + ".log")
	if err != nil {
		return fmt.Errorf("make image: %w", err)
	}
	defer log.Close()
	b := &rootBuild{log: log}
	for pattern, name := range map[string]string{"vmlinuz-*": imageKernel, "initrd.img-*": imageInitrd} {
		found, err := filepath.Glob(filepath.Join(root, "boot", pattern))
		if err != nil || len(found) != 1 {
			return fmt.Errorf("make image: %d files boot/%s in the root, want one (%w)", len(found), pattern, err)
		}
		if err := b.command(ctx, "cp", found[0], filepath.Join(dir, name)); err != nil {
			return err
		}
	}
	return b.command(ctx, "mke2fs", "-q", "-t", "ext4", "-O", imageFeatures, "-E", "quotatype=prjquota", "-d", root, filepath.Join(dir, imageDisk), imageSize)
}

// The files of a virtual machine in its directory.
const (
	vmDisk  = "disk.qcow2"
	vmAgent = "agent.img"
	// vmKernelArgs is what later boots add to the kernel's command line; it need not exist.
	vmKernelArgs = "kernel-args"
)

// makeVMDisk makes a disk on top of the image, and one with the agent: this very program.
func (r *Rig) makeVMDisk(ctx context.Context, dir string) error {
	image, err := EnsureImage(ctx, VMRoot(), r.progress)
	if err != nil {
		return err
	}
	err = r.tool(ctx, "disk-"+filepath.Base(dir), "qemu-img", "create", "-q", "-f", "qcow2",
		"-F", "raw", "-b", filepath.Join(image, imageDisk), filepath.Join(dir, vmDisk))
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	return writeAgentDisk(filepath.Join(dir, vmAgent))
}

// writeAgentDisk writes this executable as a raw disk: padded to whole sectors.
func writeAgentDisk(path string) error {
	if err := copyFile("/proc/self/exe", path); err != nil {
		return fmt.Errorf("make agent disk: %w", err)
	}
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("make agent disk: %w", err)
	}
	const sector = 4096
	if err := os.Truncate(path, (fi.Size()+sector-1)/sector*sector); err != nil {
		return fmt.Errorf("make agent disk: %w", err)
	}
	return nil
}
