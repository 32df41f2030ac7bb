#!/usr/bin/env bash
# Every test, on a fresh Debian 12 machine with rustup: installs what is missing, builds everything, checks, tests.
#   ci/test.sh            all of it
#   ci/test.sh FILTER     the same set-up, then only the tests whose name contains FILTER

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

check_scripts() {
    shellcheck --external-sources ci/*.sh .ci/run tests/lab/src/guest/*.sh
}

# Licences, sources and bans. Advisories need a database from the net that changes from day to day: they are not a test.
check_dependencies() {
    ensure_tool cargo-deny cargo-deny "$CARGO_DENY_VERSION" --debug
    cargo deny --locked check --allow license-not-encountered bans licenses sources
}

# What compiles for macOS without its SDK: vminit is a program for Linux, and so are most of the tests. Its settings are nobody else's.
check_macos() (
    ensure_macos_check
    cargo clippy --locked --target "$MACOS" -p magikvm-proto -p magikvm-platform -p magikvm-images -p magikvm -p magikvm-image --features magikvm/testing -- -D warnings
)

need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
need_aarch64
if [ $# = 0 ]; then
    step "Checking the scripts" check_scripts
    step "Checking the formatting" cargo fmt --all --check
    step "Checking with clippy" cargo clippy --locked --workspace --all-targets --features magikvm/testing -- -D warnings
    step "Checking for aarch64" cargo clippy --locked --workspace --all-targets --features magikvm/testing --target "$AARCH64" -- -D warnings
    step "Checking for macOS" check_macos
    step "Checking the dependencies" check_dependencies
fi
if [ $# = 0 ]; then
    step "Fuzzing what reads strangers' bytes" ci/fuzz.sh "${MAGIKVM_FUZZ_SECONDS:-15}"
fi
step "Building the programs" build_programs --features magikvm/testing
ensure_vhost_vsock
step "Making the guest image" ensure_guest_image "$DIST/guest"
step "Making the guest image for aarch64" ensure_aarch64_guest
ensure_debian_userland
ensure_lab

# What a user may have set for his own pods is not for the tests.
unset MAGIKVM_ROOT MAGIKVM_GUEST MAGIKVM_ACCEL MAGIKVM_VMM
export MAGIKVM_BIN="$DIST/magikvm"
export MAGIKVM_TEST_GUEST="$DIST/guest"
export MAGIKVM_TEST_GUEST_AARCH64="$DIST/guest-aarch64"
export MAGIKVM_TEST_BUSYBOX_AARCH64="$ARM64_BUSYBOX"
export MAGIKVM_TEST_USERLAND="$USERLAND"
step "Testing" cargo test --locked --workspace --no-fail-fast --features magikvm/testing -- "$@"
say "All is well, after $SECONDS s"
