# Two racks of BIRD and FRR routers and two nodes in network namespaces.
.PHONY: bgp
bgp: ## fail links and routers around two racks, kill agents; prints for how long packets were lost (root)
	@tests/prepare bird2 frr
	@VK_METAL_REQUIRE=all go test -count=1 -v -timeout 10m -run '^(TestRacks|TestKill)' ./hostgw/bgp | grep -E '^(---|ok|FAIL|panic)|_test.go:'
