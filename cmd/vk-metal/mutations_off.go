//go:build !mutations

package main

import "github.com/vk-metal/vk-metal/provider"

// mutate does nothing: only a build that judges the tests can be made to err.
func mutate(deps provider.Deps) provider.Deps { return deps }
