# `make demo` and `make test` need nothing but Go, make and root on a Debian machine: they
# install the rest.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help

COMMIT  := $(shell git rev-parse --short=12 HEAD 2>/dev/null)
# A tag, or a version that sorts before the next one.
VERSION ?= $(shell git describe --tags --exact-match --match 'v*' 2>/dev/null || \
	echo v0.1.0-dev.$$(git rev-list --count HEAD 2>/dev/null || echo 0)$(if $(COMMIT),.g$(COMMIT)))
# Builds are reproducible: the only time in them is the commit's.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
BUILT   := $(shell date -u -d @$(SOURCE_DATE_EPOCH) +%Y-%m-%dT%H:%M:%SZ)
DIST    ?= dist
ARCH    ?= $(shell go env GOARCH)

STAMP   := github.com/vk-metal/vk-metal/internal/version
LDFLAGS := -s -w -X $(STAMP).version=$(VERSION) -X $(STAMP).commit=$(COMMIT) -X $(STAMP).date=$(BUILT)
GOBUILD := CGO_ENABLED=0 GOARCH=$(ARCH) go build -trimpath -buildvcs=false -tags '$(strip grpcnotrace $(TAGS))' -ldflags '$(LDFLAGS)'

COMMANDS := vk-metal vk-metal-launch vk-metal-log

.PHONY: help
help: ## show the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build the three programs into dist/bin
	@mkdir -p dist/bin
	@for c in $(COMMANDS); do echo "building $$c $(VERSION)"; $(GOBUILD) -o dist/bin/$$c ./cmd/$$c || exit 1; done

.PHONY: packages
packages: build ## build the deb and the rpm into DIST (dist), reproducibly
	@mkdir -p $(DIST) && rm -f $(DIST)/vk-metal[-_]*.deb $(DIST)/vk-metal[-_]*.rpm
	@$(MAKE) --no-print-directory nfpm

-include tests/*.mk

# Packs what lies in dist/bin into DIST; tests make several versions of one build by it.
.PHONY: nfpm
nfpm:
	@mkdir -p $(DIST)
	@nfpm=$$(tools/install.sh nfpm) && for p in deb rpm; do \
		ARCH=$(ARCH) VERSION=$(VERSION) $$nfpm package --config packaging/nfpm.yaml --packager $$p --target $(DIST)/ || exit 1; done

.PHONY: unit
unit: ## run the unit tests (as root also those that need the kernel)
	@gotestsum=$$(tools/install.sh gotestsum) && \
		$$gotestsum --format pkgname-and-test-fails -- -timeout 20m $(TESTFLAGS) ./...
	@cd tests && go vet ./...

.PHONY: lint
lint: ## check format, imports, vet and golangci-lint
	@.ci/lint

.PHONY: test
test: ## run everything that CI runs: lint, unit, machine and cluster tests, the short list of conformance
	@.ci/run

NODES ?= 2
.PHONY: demo
demo: ## a control plane and NODES=2 machines with vk-metal; stays up (root)
	@tests/prepare
	@mkdir -p .demo && cd tests && go build -o ../.demo/metalrig ./cmd/metalrig && cd .. && .demo/metalrig demo --nodes $(NODES)

.PHONY: demo-down
demo-down: ## remove the demo and everything that it made on this host
	@[ ! -e .demo ] || { [ -x .demo/metalrig ] || (cd tests && go build -o ../.demo/metalrig ./cmd/metalrig); .demo/metalrig demo down; }

.PHONY: e2e
e2e: ## boot a cluster of machines and run the end-to-end tests on it (root; RUN=regexp)
	@tests/prepare
	@cd tests && VK_METAL_E2E=1 VK_METAL_E2E_MORE=$(VK_METAL_E2E_MORE) VK_METAL_HOSTILE=$(VK_METAL_HOSTILE) go test -count=1 -v -timeout 60m -run '$(RUN)' ./e2e

.PHONY: e2e-more
e2e-more: ## run the slow end-to-end tests as well, which CI leaves out (root; RUN=regexp)
	@$(MAKE) --no-print-directory e2e VK_METAL_E2E_MORE=1 RUN='$(RUN)'

.PHONY: hostile
hostile: ## pods that fork, fill, flood and open all that they can; how their neighbours fare (root)
	@$(MAKE) --no-print-directory e2e RUN='^TestAttack$$$$' VK_METAL_HOSTILE=1

.PHONY: bench
bench: ## measure the parts, then pods on a machine against their floor (root)
	go test -run '^$$' -bench . -benchtime 2s ./internal/logwriter
	go test -run '^$$' -bench 'HTTP|TCP|Floor' -benchtime 2s ./probes
	go test -run '^$$' -bench Thousand -benchtime 10x ./probes
	@tests/prepare
	@cd tests && VK_METAL_BENCH=1 go test -count=1 -v -timeout 60m -run '$(RUN)' ./bench

.PHONY: clean
clean: ## remove what was built
	rm -rf dist bin
