# Rolling updates and drains under load, with and without the hold of stop signals.
.PHONY: handover
handover: ## count failed connections while pods are replaced: [CONNECTIONS=20000] (root)
	@tests/prepare
	@cd tests && VK_METAL_E2E=1 VK_METAL_HANDOVER=$(or $(CONNECTIONS),20000) go test -count=1 -v -timeout 60m -run '^TestHandover$$' ./e2e
