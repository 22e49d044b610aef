# Everything a person needs: `make run` to see podd work, `make test` to check it. Debian 12 or newer, root.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help deps build run test bench arena install apparmor

help:
	@echo 'make run     a real pod in a private arena, shown step by step'
	@echo 'make test    format, lints, unit tests, arena and virtual machines, with one summary line'
	@echo 'make bench   latencies, throughput and memory, as JSON'
	@echo 'make arena   a shell beside a running podd and registry; nothing in it touches the host'
	@echo 'make build   the release binary target/release/podd'
	@echo 'make install podd, its unit and its configuration on this machine'

# Installs what is missing, from Debian packages only.
deps:
	@scripts/deps

build: deps
	@cargo build --release -p podd-server -p podd-e2e

run: build
	@"$$(scripts/target-dir)/release/demo"

test: deps
	@scripts/test

bench: build
	@"$$(scripts/target-dir)/release/bench"

arena: build
	@"$$(scripts/target-dir)/release/arena" --podd -- bash

install: build
	@deploy/install.sh "$$(scripts/target-dir)/release/podd"

# Compiles podd's AppArmor profile again, after a change of its text; needs Debian's package apparmor.
AA = /etc/apparmor.d/abi/kernel-5.4-vanilla
apparmor:
	@cd server/src/apparmor && apparmor_parser -QKq --policy-features $(AA) -M $(AA) -o podd-default.bin podd-default.profile
