# Everything starts here: `make demo` and `make test` do all the set-up they need and are
# idempotent. What is missing comes through the machine's own package manager (tools/setup).

CARGO ?= cargo

.PHONY: help demo test setup browser build fmt clippy licences unit vm test-kvm repeat kernel-examples published-schedulers fuzz bench book clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 29

demo: setup ## set everything up, boot a real kernel, judge an example scheduler
	@tools/say "building cryoscope"
	$(CARGO) build --release --bins
	@tools/say "running scripts/smoke.rhai against a real kernel"
	target/release/cryoscope run scripts/smoke.rhai

test: setup browser fmt clippy unit vm ## set everything up and pass every test
	@tools/say "all tests have passed"

setup: ## install what is missing through the package manager
	@tools/setup

# Tests look at the page of a report in it, and need letters for that.
browser:
	@tools/setup chromium fonts-dejavu-core

fmt:
	@tools/say "formatting"
	$(CARGO) fmt --check

clippy:
	@tools/say "clippy, warnings denied"
	$(CARGO) clippy --all-targets -- -D warnings

unit: ## unit, golden, house-rule and licence tests: seconds
	@tools/say "unit and golden tests, house rules, licences"
	$(CARGO) test --lib --bins --test tidy --test licences --test book

vm: ## tests that boot real kernels
	@tools/say "tests against real kernels"
	tools/vm-tests

test-kvm: setup ## our own machine on KVM at length; PARTS= of those in benches/kvm.rs
	$(CARGO) test --test kvm
	$(CARGO) test --bench kvm -- $(PARTS)

repeat: setup ## SCRIPTS= (smoke) TIMES= (10) over KERNELS=, BOOTS= and TOPOLOGIES= (long)
	$(CARGO) build --release --bins
	tools/repeat $(SCRIPTS)

kernel-examples: setup ## build the kernel's own example schedulers, compare what they print with snapshots
	tools/kernel-examples

published-schedulers: setup ## build a scheduler of the Rust registry, compare what it tells with snapshots
	tools/published-schedulers

fuzz: ## search for inputs that break the parsers, TIME seconds (60) for each target
	@tools/setup g++
	tools/fuzz

bench: ## whole runs against a bare QEMU, and maps against bpftool, in the same run
	@tools/setup bpftool
	$(CARGO) bench --bench runs --bench maps --bench series

book: ## the book as pages, in target/book
	@tools/book

clean:
	$(CARGO) clean
