#!/usr/bin/env bash
# Runs many pods one after the other, and fails if one fails or anything of them is left. Prints the times and the memory of the first and of the
# last hundred, which should be the same:
#   ci/soak.sh [CLASS [COUNT]]
# CLASS is pod-containers (the default) or pod-microvm-containers, COUNT the number of pods [1000]. A thousand pods in namespaces take some minutes.
# CI does not run it.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

class="${1:-pod-containers}"
count="${2:-1000}"
[[ "$count" =~ ^[1-9][0-9]*$ ]] || die "the number of pods is a whole number above 0, and not $count"
need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs
case "$class" in
    pod-containers)
        make_demo_layout "$DIST/demo-image"
        run_bench soak "$class" "$count"
        ;;
    pod-microvm-containers) whole_pods soak "$class" "$count" ;;
    *) die "unknown class: $class; choose pod-containers or pod-microvm-containers" ;;
esac
