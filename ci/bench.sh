#!/usr/bin/env bash
# Prints the figures that SPECIFICATION.md promises, each beside its target or peer, measured in one run:
#   ci/bench.sh [first-pod|images|io|egress|krun|semantics|containers|all]
# This takes some minutes. The host should have no other load.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

first_pod() {
    whole_pods first_pod
}

io() {
    run_bench io_jail
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
    run_bench krun
}

images() {
    ensure_debian_userland
    export MAGIKVM_TEST_USERLAND="$USERLAND"
    run_bench images
}

semantics() {
    whole_pods semantics
}

containers() {
    # Ordinary users have other peers.
    [ "$(id -u)" = 0 ] || die "the figures of pods in namespaces need root: run ci/bench.sh containers as root"
    make_demo_layout "$DIST/demo-image"
    ensure_peers
    run_bench containers
}

case "${1:-all}" in
    first-pod) benches=(first_pod) ;;
    images) benches=(images) ;;
    io) benches=(io) ;;
    egress) benches=(egress) ;;
    krun) benches=(krun) ;;
    semantics) benches=(semantics) ;;
    containers) benches=(containers) ;;
    all)
        benches=(first_pod images io semantics)
        # The network namespaces and the peers are for root.
        [ "$(id -u)" != 0 ] || benches+=(egress containers)
        # The lab emulates an x86-64 host.
        [ "$ARCH" != x86_64 ] || benches+=(krun)
        ;;
    *) die "unknown figures: $1; choose first-pod, images, io, egress, krun, semantics, containers or all" ;;
esac
need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
for bench in "${benches[@]}"; do
    "$bench"
done
