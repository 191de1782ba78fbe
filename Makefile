# Cutover. The two commands of the README are `make demo` and `make test`; everything else is a part of them.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Debian keeps both proxies where an ordinary user's PATH does not look.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOTEST  := go test -count=1

.PHONY: help
help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: setup
setup: ## install what is missing (apt), and say what
	@scripts/setup.sh

.PHONY: build
build: ## build the binaries into .bin/
	@mkdir -p .bin
	go build -trimpath -ldflags '$(LDFLAGS)' -o .bin/cutover ./cmd/cutover
	go build -trimpath -o .bin/sample ./deployments/demo/sample
	go build -trimpath -o .bin/demo ./deployments/demo

.PHONY: demo
demo: setup build ## the whole path on this machine, live; DEMO_EXIT=1 ends with exit 0 only if all of it held
	@.bin/demo

.PHONY: check
check: setup .bin/consul fmt-check vet lint ## the part to run on each change: under 5 minutes warm
	$(GOTEST) -short $$(go list ./... | grep -v -E '/e2e(/|$$)')

.PHONY: test
test: setup build .bin/consul generate-check fmt-check vet lint ## everything, from nothing: what CI runs
	$(GOTEST) -race -timeout 15m -p 2 $$(go list ./... | grep -v -E '/e2e(/|$$)')
	$(GOTEST) -tags crashpoints ./internal/crashpoint
	$(GOTEST) -timeout 80m -p 1 ./e2e/...

# Hours. Each part prints its seed and figures; SOAK_SEED, RESTORE_SEED, CRASH_SEED and SIM_SEED give the same choices again.
SOAK_DEPLOYS ?= 500
RESTORE_TXNS ?= 1000
SIM_SEEDS ?= 2000
SEARCH_LIMIT ?= 200000
TXN_SEARCH_LIMIT ?= 200000
.PHONY: soak
soak: setup build ## for hours: random kills under load, every pair of crashes, long searches; figures and seeds
	SOAK_DEPLOYS=$(SOAK_DEPLOYS) $(GOTEST) -v -timeout 0 -run 'TestSoak$$' ./e2e
	DRILL_APPS=100 $(GOTEST) -v -timeout 0 -run 'TestDrillManyAppsAtOnce$$' ./e2e
	RESTORE_TXNS=$(RESTORE_TXNS) $(GOTEST) -v -timeout 0 -run 'TestRestoreEquality$$' ./e2e
	SIM_SEEDS=$(SIM_SEEDS) $(GOTEST) -timeout 0 -run 'TestSeeds$$' ./e2e/simulation
	SEARCH_LIMIT=$(SEARCH_LIMIT) $(GOTEST) -v -timeout 0 -run 'TestSearch$$' ./e2e/protocol
	TXN_SEARCH_LIMIT=$(TXN_SEARCH_LIMIT) $(GOTEST) -timeout 0 -run 'TestExhaustive$$' ./orchestrator/txn
	$(GOTEST) -v -timeout 0 -tags soak -run 'TestSoakCrashProduct$$' ./e2e

.PHONY: bench
bench: setup build ## figures beside their bars
	$(GOTEST) -run '^$$' -bench . -benchtime 1x -timeout 30m ./e2e/...

.PHONY: fmt fmt-check vet
fmt: ## format the Go code
	gofmt -w $$(git ls-files '*.go' | grep -v '^proto/gen/')
fmt-check:
	@out=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$out" ] || { echo "not formatted (make fmt):"; echo "$$out"; exit 1; }
vet:
	go vet ./...
	go vet -tags crashpoints,soak ./internal/crashpoint ./lbagent/... ./orchestrator/... ./e2e

.PHONY: lint
lint: .bin/golangci-lint
	.bin/golangci-lint run ./...
.bin/golangci-lint: tools/golangci.mod tools/golangci.sum
	@mkdir -p .bin
	go build -modfile=tools/golangci.mod -o $@ github.com/golangci/golangci-lint/v2/cmd/golangci-lint
# A test tool in a module of its own: Consul is under the BUSL since 1.17, so it is never linked or shipped.
.bin/consul: tools/consul.mod tools/consul.sum
	@mkdir -p .bin
	go build -trimpath -ldflags '-s -w' -modfile=tools/consul.mod -o $@ github.com/hashicorp/consul

.PHONY: generate generate-check
generate: .bin/buf ## regenerate what is generated and committed
	cd proto && ../.bin/buf lint && ../.bin/buf generate
generate-check: generate
	@git diff --exit-code --stat -- proto/gen || { echo "the generated code is not current: run make generate and commit"; exit 1; }
.bin/buf: tools/buf.mod tools/buf.sum
	@mkdir -p .bin
	go build -modfile=tools/buf.mod -o $@ github.com/bufbuild/buf/cmd/buf
