#!/usr/bin/env bash
# Runs examples/hello.yaml on a fresh Debian 12 machine with rustup: installs what is missing, builds magikvm, a guest image
# and a demo container image, and runs the pod. Run it again: it only does what is left to do.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
ensure_vhost_vsock
step "Making the guest image" ensure_guest_image
step "Making the demo container image" ensure_demo_image
choose_accel

say "magikvm run --rm ${ACCEL[*]} examples/hello.yaml"
"$DIST/magikvm" run --rm "${ACCEL[@]}" examples/hello.yaml
say "The pod has ended well. The program is $DIST/magikvm; try it with your own pod.yaml."
