#!/usr/bin/env bash
# Prints the figures that SPECIFICATION.md promises, each beside its target or peer, measured in one run:
#   ci/bench.sh [first-pod|images|io|egress|krun|semantics|all]
# This takes some minutes. The host should have no other load.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# whole_pods BENCH: runs a benchmark whose pods run under QEMU.
whole_pods() {
    ensure_vhost_vsock
    step "Building the guest image" ensure_guest_image "$DIST/guest"
    make_demo_layout "$DIST/demo-image"
    choose_accel
    [ ${#ACCEL[@]} = 0 ] || export MAGIKVM_ACCEL=tcg
    export MAGIKVM_TEST_GUEST="$DIST/guest"
    export MAGIKVM_DEMO_IMAGE="$DIST/demo-image"
    cargo bench --locked -p magikvm-tests --bench "$1"
}

first_pod() {
    whole_pods first_pod
}

io() {
    cargo bench --locked -p magikvm-tests --bench io_jail
    whole_pods io_files
    whole_pods io_ports
}

egress() {
    # The network namespaces are for root.
    [ "$(id -u)" = 0 ] || die "the figures of the network need root: run ci/bench.sh egress as root"
    whole_pods egress
}

krun() {
    step "Building the guest image" ensure_guest_image "$DIST/guest"
    make_demo_layout "$DIST/demo-image"
    ensure_lab
    export MAGIKVM_TEST_GUEST="$DIST/guest"
    export MAGIKVM_DEMO_IMAGE="$DIST/demo-image"
    cargo bench --locked -p magikvm-tests --bench krun
}

images() {
    ensure_debian_userland
    export MAGIKVM_TEST_USERLAND="$USERLAND"
    cargo bench --locked -p magikvm-tests --bench images
}

semantics() {
    whole_pods semantics
}

case "${1:-all}" in
    first-pod) benches=(first_pod) ;;
    images) benches=(images) ;;
    io) benches=(io) ;;
    egress) benches=(egress) ;;
    krun) benches=(krun) ;;
    semantics) benches=(semantics) ;;
    all)
        benches=(first_pod images io semantics)
        # The network namespaces are for root.
        [ "$(id -u)" != 0 ] || benches+=(egress)
        # The lab emulates an x86-64 host.
        [ "$ARCH" != x86_64 ] || benches+=(krun)
        ;;
    *) die "unknown figures: $1; choose first-pod, images, io, egress, krun, semantics or all" ;;
esac
need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
export MAGIKVM_BIN="$DIST/magikvm"
for bench in "${benches[@]}"; do
    "$bench"
done
