# The commands of this project. `make` alone lists them.

.PHONY: help
help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: tools ## Check everything: format, lints, docs, contract, dependencies, tests
	@scripts/test

# Hours. docs/torture.md has what the last run found.
.PHONY: torture
torture: tools ## Lose power, fail, damage, kill and fuzz far more often than `make test` does
	@scripts/torture

.PHONY: tools
tools: ## Install what the checks need beside Rust, below target/tools
	@scripts/tools

.PHONY: stubs
stubs: ## Write the stubs of the contract in every language into gen/, where Go's are committed
	@scripts/stubs

.PHONY: demo
demo: ## Watch events go from a simulated Prelude to the terminal, until Ctrl-C
	cargo run --release --locked -- demo

# In the aged case a log remembers this many ids: fewer than the default, to be quick.
.PHONY: bench
bench: ## Measure the parts and the whole program, quickly: figures to look at, not to publish
	BENCH_IDS=100000 cargo bench --locked -- --quick
	cargo run --release --locked -- bench all --quick
	benches/peers/run --quick
