# Upstream's conformance suite on vk-metal machines.
PARALLEL ?= 2
SERVICE_PROXY ?= vk-metal
CONFORMANCE := .conformance/metalrig conformance

.PHONY: .conformance-command
.conformance-command:
	@tests/prepare gcc libc6-dev bzip2
	@mkdir -p .conformance && cd tests && go build -o ../.conformance/metalrig ./cmd/metalrig

.PHONY: conformance
conformance: .conformance-command ## run upstream's suite: [FOCUS=regex] [SKIP=regex] [NODES=2] [PARALLEL=2] [KEEP=1]
	@$(CONFORMANCE) --focus '$(subst ','\'',$(value FOCUS))' --skip '$(subst ','\'',$(value SKIP))' --nodes $(NODES) --parallel $(PARALLEL) \
		--service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep)

.PHONY: conformance-report
conformance-report: .conformance-command ## write docs/conformance.md from the last run, or from RUNS="a b"
	@$(CONFORMANCE) report $(RUNS)

.PHONY: conformance-down
conformance-down: .conformance-command ## remove the cluster that KEEP=1 left
	@$(CONFORMANCE) down

.PHONY: conformance-mutations
conformance-mutations: .conformance-command ## check that tests find a vk-metal that errs on purpose, in five ways
	@$(CONFORMANCE) mutations --nodes $(NODES) --parallel $(PARALLEL) --service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep)

# What CI runs of it: quick tests of everything a node does, none that waits for minutes.
CONFORMANCE_SHORT := \[sig-storage\] (ConfigMap|Secrets|EmptyDir volumes|Downward API volume|Projected combined|Subpath).*\[Conformance\]
CONFORMANCE_SHORT := $(CONFORMANCE_SHORT)|\[sig-node\] (Secrets|ConfigMap|Downward API|Containers|InitContainer|Container Lifecycle Hook|Kubelet |Security Context|Container Runtime).*\[Conformance\]
CONFORMANCE_SHORT := $(CONFORMANCE_SHORT)|\[sig-node\] Pods should (get a host IP|be submitted|support remote|support retrieving).*\[Conformance\]
CONFORMANCE_SHORT := $(CONFORMANCE_SHORT)|\[sig-apps\] (Deployment|ReplicaSet|ReplicationController).*\[Conformance\]
CONFORMANCE_SHORT := $(CONFORMANCE_SHORT)|\[sig-network\] (DNS|Networking Granular Checks).*\[Conformance\]

.PHONY: conformance-short
conformance-short: .conformance-command ## the part of conformance that CI runs: under 10 minutes
	@$(CONFORMANCE) --focus '$(CONFORMANCE_SHORT)' --nodes $(NODES) --parallel $(PARALLEL) --service-proxy $(SERVICE_PROXY) $(if $(KEEP),--keep)
