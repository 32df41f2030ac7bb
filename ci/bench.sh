#!/usr/bin/env bash
# Prints the figures that SPECIFICATION.md promises, each beside its aim or peer, measured in one run. Takes some minutes; the machine
# should have nothing else to do.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
ensure_vhost_vsock
step "Making the guest image" ensure_guest_image "$DIST/guest"
make_demo_layout "$DIST/demo-image"
choose_accel
[ ${#ACCEL[@]} = 0 ] || export MAGIKVM_ACCEL=tcg

export MAGIKVM_BIN="$DIST/magikvm"
export MAGIKVM_TEST_GUEST="$DIST/guest"
export MAGIKVM_DEMO_IMAGE="$DIST/demo-image"
cargo bench --locked -p magikvm-tests --bench first_pod
