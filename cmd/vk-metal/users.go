package main

import (
	"sync"

	"github.com/vk-metal/vk-metal/internal/sandbox"
)

// usersProblem is why pods cannot have user namespaces on this host, empty if they can.
var usersProblem = sync.OnceValue(func() string {
	if err := sandbox.UsersSupported(); err != nil {
		return "this host cannot give pods user namespaces: " + err.Error()
	}
	return ""
})

func (a *agent) noUserNamespaces() string { return usersProblem() }
