// Package rig makes the machines and networks that vk-metal is tested on: real
// systemd as PID 1 in Debian roots, bridges and routers in network namespaces,
// and processes (a control plane, a registry) in namespaces of their own.
//
// A Rig is a state directory. Everything a rig makes outside of it (network
// namespaces, links, cgroups, processes, changed sysctls) is written down there
// before it is made, so that Down, called by any later process, also after a
// crash half way, removes all of it. Several rigs live side by side.
//
// Processes and machines outlive the program that started them. They are started
// through this very executable: importing the package installs an init hook that
// takes over when the program runs under one of the hook's argv[0] names.
//
// The package knows nothing of Kubernetes and nothing of vk-metal beyond the name
// of its package and units in CollectLogs.
package rig
