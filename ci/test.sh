#!/usr/bin/env bash
# Runs every check and test on a fresh Debian 12 host with rustup: installs missing packages, builds everything, checks, tests.
#   ci/test.sh            runs everything
#   ci/test.sh FILTER     does the same set-up, then runs only the tests whose name contains FILTER
# ci/check.sh runs the quick checks alone.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Licences, sources and bans. Advisories are not a test: they need an online database that changes from day to day.
check_dependencies() {
    ensure_tool cargo-deny cargo-deny "$CARGO_DENY_VERSION" --debug
    cargo deny --locked check --allow license-not-encountered bans licenses sources
}

# Checks what compiles for macOS without its SDK: vminit and most of the tests are for Linux only. The subshell keeps the
# settings away from the other steps.
check_macos() (
    ensure_macos_check
    cargo clippy --locked --target "$MACOS" -p magikvm-proto -p magikvm-platform -p magikvm-images -p magikvm -p magikvm-image --features magikvm/testing -- -D warnings
)

# Runs at the end in any case.
finish() {
    report_times
    report_slow_tests "${TEST_LOG:-}"
    report_lab_boots
    if [ -n "$passed" ]; then say "All checks and tests passed in $SECONDS s"; fi
}

# Not the exit code, which is 0 after an interruption.
passed=
trap finish EXIT
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
    step "Fuzzing the parsers of untrusted input" ci/fuzz.sh "${MAGIKVM_FUZZ_SECONDS:-15}"
fi
step "Building the programs" build_programs --features magikvm/testing
ensure_vhost_vsock
step "Building the guest image" ensure_guest_image "$DIST/guest"
step "Building the guest image for aarch64" ensure_aarch64_guest
ensure_debian_userland
ensure_lab
ensure_apparmor

# The tests must not see what a user has set for their own pods.
unset MAGIKVM_ROOT MAGIKVM_GUEST MAGIKVM_ACCEL MAGIKVM_VMM
export MAGIKVM_BIN="$DIST/magikvm"
export MAGIKVM_TEST_GUEST="$DIST/guest"
export MAGIKVM_TEST_GUEST_AARCH64="$DIST/guest-aarch64"
export MAGIKVM_TEST_BUSYBOX_AARCH64="$ARM64_BUSYBOX"
export MAGIKVM_TEST_USERLAND="$USERLAND"
count_lab_boots "$DIST/lab-boots"
TEST_LOG="$DIST/tests.log"
step "Testing" run_tests "$TEST_LOG" cargo test --locked --workspace --no-fail-fast --features magikvm/testing -- "$@"
passed=yes
