package services

import (
	"testing"

	"github.com/vk-metal/vk-metal/internal/testnet"
)

// world is a node with pods, and what the test puts into its kernel.
type world struct {
	*testnet.World
	t testing.TB
}

func newWorld(t testing.TB) *world { return &world{testnet.New(t), t} }
