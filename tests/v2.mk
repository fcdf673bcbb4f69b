.PHONY: test-v2
test-v2: ## smoke tests on cgroup v2 and Debian 13 in a virtual machine (slow, root)
	@tests/prepare qemu
	@cd tests && export VK_METAL_TEST_V2=1 VK_METAL_REQUIRE=all && \
		VK_METAL_E2E=1 go test -count=1 -v -timeout 60m -run '^TestV2$(RUN)' ./e2e && \
		go test -count=1 -v -timeout 75m -run '^Test(Systemd|WireGuard)V2$$' ./inmachine && \
		go test -count=1 -v -timeout 30m -run '^TestVirtualMachine$$' ./rig

.PHONY: test-v2-host
test-v2-host: ## the rig's own tests on a host with cgroup v2 (very slow, root)
	@tests/prepare qemu
	@cd tests && VK_METAL_TEST_V2=1 VK_METAL_REQUIRE=all go test -count=1 -v -timeout 70m -run '^TestRigOnUnifiedHost$$' ./rig
