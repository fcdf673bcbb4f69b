# A random workload while everything below and above it fails; see tests/e2e/torture_test.go.
.PHONY: torture
torture: ## 200 pods and random faults: [TORTURE=10m] [SEED=n] [PODS=200] (root)
	@tests/prepare
	@cd tests && VK_METAL_E2E=1 VK_METAL_TORTURE=$(or $(TORTURE),10m) VK_METAL_TORTURE_SEED=$(SEED) VK_METAL_TORTURE_PODS=$(PODS) \
		go test -count=1 -v -timeout 60m -run '^TestTorture$$' ./e2e
