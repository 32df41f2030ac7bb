#!/usr/bin/env bash
# The quick checks, for every change before it is committed: formatting, the scripts, clippy, and the unit tests that need no VM.
# It needs rustup and the packages below, and installs only those that are missing. With a warm build directory it takes less than three
# minutes. ci/test.sh runs everything.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_packages gcc libc6-dev libcap-ng-dev libseccomp-dev shellcheck
need_rust
step "Checking the scripts" check_scripts
step "Checking the formatting" cargo fmt --all --check
step "Checking with clippy" cargo clippy --locked --workspace --all-targets --features magikvm/testing -- -D warnings
# The tests of magikvm-tests and magikvm-lab need the finished programs, and most of them need a VM.
step "Running the unit tests" cargo test --locked --quiet --workspace --exclude magikvm-tests --exclude magikvm-lab --lib --bins \
    --features magikvm/testing
step "Checking the wire protocol" cargo test --locked --quiet -p magikvm-proto --test golden
step "Checking the layers" cargo test --locked --quiet -p magikvm-tests --test layers
say "The quick checks passed in $SECONDS s"
