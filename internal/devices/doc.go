// Package devices lends the devices of device plugins (deviceplugin v1beta1) to pods: it takes
// registrations, follows what each plugin has and how it is, allocates devices to containers,
// and tells who has what (pod-resources v1). What was lent is on disk before a pod is told of
// it, and survives agent and reboot. It must not know units, cgroups or how a container starts.
package devices
