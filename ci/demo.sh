#!/usr/bin/env bash
# Runs examples/hello.yaml on a fresh Debian 12 host with rustup: installs missing packages, builds magikvm, a guest image
# and a demo container image, and runs the pod. A second run skips the steps that are already done.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
ensure_vhost_vsock
step "Building the guest image" ensure_guest_image
step "Building the demo container image" ensure_demo_image
choose_accel

say "magikvm run --rm ${ACCEL[*]} examples/hello.yaml"
"$DIST/magikvm" run --rm "${ACCEL[@]}" examples/hello.yaml
say "The pod has succeeded. The program is $DIST/magikvm; ci/install.sh installs it."
