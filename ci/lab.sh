#!/usr/bin/env bash
# Runs the tests that need real KVM, unified cgroup v2, Landlock or a disposable host, each in a VM that emulates such a host (tests/lab).
#   ci/lab.sh [FILTER]                  prepares everything the tests need, and runs those whose name contains FILTER
#   ci/lab.sh --count N                 runs one pod in each of N fresh labs, without repetitions, and counts those that stood still
#   ci/lab.sh [OPTION…] --run COMMAND…  runs a command in a fresh lab, and passes on its output and its exit code
# Options for --run:
#   --keep DIR       copies what the command leaves in the directory $MAGIKVM_LAB_OUT to DIR
#   --memory MIB     sets the memory of the lab
#   --limit SECONDS  kills the command after that time
#   --needs PATH     makes a path of /tmp visible, in addition to those in the command
# MAGIKVM_LAB=never runs the tests directly on the host, if the host has what they need.

# The caller's directory, for the paths in the command; lib.sh changes to another directory.
caller="$PWD"
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    sed -n '3,10s/^# *//p' "$REPO/ci/lab.sh" >&2
    exit 2
}

options=()
filter=()
run=""
count=""
while [ $# -gt 0 ]; do
    case "$1" in
        --keep | --memory | --limit | --needs)
            [ $# -gt 1 ] || usage
            options+=("$1" "$2")
            shift 2
            ;;
        --count)
            if [ $# != 2 ] || [[ ! "$2" =~ ^[1-9][0-9]*$ ]]; then usage; fi
            count="$2"
            shift 2
            ;;
        --run)
            run=1
            shift
            break
            ;;
        -*) usage ;;
        *)
            filter=("$1")
            shift
            [ $# = 0 ] || usage
            ;;
    esac
done

if [ -n "$run" ]; then
    [ $# -gt 0 ] || usage
    # The preparation prints to standard error: standard output belongs to the command.
    {
        need_rust
        ensure_lab
        cargo build --locked --quiet -p magikvm-lab
    } >&2
    cd "$caller"
    exec "$CARGO_TARGET_DIR/debug/magikvm-lab" "${options[@]}" -- "$@"
fi
[ ${#options[@]} = 0 ] || usage

need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}" "${TEST_PACKAGES[@]}"
need_rust
step "Building the programs" build_programs --features magikvm/testing
ensure_vhost_vsock
step "Building the guest image" ensure_guest_image "$DIST/guest"
ensure_lab
ensure_apparmor
unset MAGIKVM_ROOT MAGIKVM_GUEST MAGIKVM_ACCEL MAGIKVM_VMM
export MAGIKVM_BIN="$DIST/magikvm"
export MAGIKVM_TEST_GUEST="$DIST/guest"
if [ -n "$count" ]; then
    # The last line of cargo's messages that names a program is that of the test.
    program="$(cargo test --locked -p magikvm-tests --test lab_boots --features magikvm/testing --no-run --message-format=json |
        sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1)"
    step "Running one pod in each of $count fresh labs" count_fresh_labs "$program" "$count" "$DIST/fresh-labs"
    exit
fi
export MAGIKVM_EVERY_ROW=1 MAGIKVM_TEST_SMALL_WRITES=1000000
# Test programs that use the lab have names that begin with lab. Of the conformance list, the lab runs every row except QEMU's.
step "Testing in the lab" cargo test --locked -p magikvm-lab -p magikvm-tests --test 'lab*' --test conformance --no-fail-fast \
    --features magikvm/testing -- "${filter[@]}" --skip qemu::
