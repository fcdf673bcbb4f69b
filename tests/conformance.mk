# Upstream's conformance suite on vk-metal machines.
PARALLEL ?= 4
SERVICE_PROXY ?= vk-metal
CONFORMANCE := .conformance/metalrig conformance

.PHONY: .conformance-command
.conformance-command:
	@tests/prepare gcc libc6-dev bzip2
	@mkdir -p .conformance && cd tests && go build -o ../.conformance/metalrig ./cmd/metalrig

.PHONY: conformance
conformance: .conformance-command ## run upstream's suite: [FOCUS=regex] [SKIP=regex] [GATES=A=true,B=true] [NODES=2] [PARALLEL=4] [KEEP=1]
	@$(CONFORMANCE) --focus '$(subst ','\'',$(value FOCUS))' --skip '$(subst ','\'',$(value SKIP))' --feature-gates '$(GATES)' --nodes $(NODES) --parallel $(PARALLEL) \
		--service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep)

.PHONY: conformance-report
conformance-report: .conformance-command ## write docs/conformance.md from the last full run and those after it, or from RUNS="a b"
	@$(CONFORMANCE) report $(RUNS)

.PHONY: conformance-down
conformance-down: .conformance-command ## remove the cluster that KEEP=1 left
	@$(CONFORMANCE) down

.PHONY: conformance-mutations
conformance-mutations: .conformance-command ## check that tests find a vk-metal that errs on purpose, in five ways
	@$(CONFORMANCE) mutations --nodes $(NODES) --parallel $(PARALLEL) --service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep)

.PHONY: conformance-short
conformance-short: .conformance-command ## the part of conformance that CI runs (tests/conformance/short.txt): minutes
	@$(CONFORMANCE) --short --nodes $(NODES) --parallel $(PARALLEL) --service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep) \
		$(if $(JUNIT),--junit '$(JUNIT)')
