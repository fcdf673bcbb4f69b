package main

import (
	"github.com/vk-metal/vk-metal/internal/volumes"
	"github.com/vk-metal/vk-metal/provider"
)

// labels is the host's SELinux, nil where it has none.
func (a *agent) labels() provider.SELinux {
	if a.pods.selinux == nil {
		return nil
	}
	return a.pods.selinux
}

// volumeLabels is the same for volumes.
func (a *agent) volumeLabels() volumes.Labels {
	if a.pods.selinux == nil {
		return nil
	}
	return a.pods.selinux
}
