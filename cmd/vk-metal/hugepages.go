package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/vk-metal/vk-metal/internal/node"
)

// hugePageSizes are the sizes that the server has pages of, if the kernel can limit what a
// group of processes takes of them.
func hugePageSizes(host node.Host) []corev1.ResourceName {
	if !countsHugePages(filepath.Join(host.Root, "/sys/fs/cgroup")) {
		return nil
	}
	var sizes []corev1.ResourceName
	for name, bytes := range host.HugePages() {
		if bytes > 0 {
			sizes = append(sizes, name)
		}
	}
	slices.Sort(sizes)
	return sizes
}

// countsHugePages looks for the hugetlb controller, in a hierarchy of its own or the unified one.
func countsHugePages(mount string) bool {
	if info, err := os.Stat(filepath.Join(mount, "hugetlb")); err == nil && info.IsDir() {
		return true
	}
	for _, dir := range []string{mount, filepath.Join(mount, "unified")} {
		data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err == nil && slices.Contains(strings.Fields(string(data)), "hugetlb") {
			return true
		}
	}
	return false
}
