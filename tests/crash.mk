# The crash matrix: every step of the agent, on real systemd (about 8 minutes).
.PHONY: crash-matrix
crash-matrix: ## kill the agent at every step of a pod's life, on a cluster of machines (root)
	@tests/prepare
	@cd tests && VK_METAL_E2E=1 VK_METAL_MATRIX=$(or $(STEPS),all) go test -count=1 -v -timeout 60m -run TestCrashMatrix ./e2e
