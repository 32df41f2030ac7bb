#!/usr/bin/env bash
# Runs each fuzz target for a while: ci/fuzz.sh [SECONDS]. Needs a nightly compiler (rustup toolchain install nightly).

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

seconds="${1:-60}"
need_packages g++
rustup run nightly rustc --version >/dev/null 2>&1 || die "no nightly compiler; install one: rustup toolchain install nightly"
ensure_tool cargo-fuzz cargo-fuzz 0.13.1
for target in manifest wire tar; do
    step "Fuzzing $target for $seconds s" \
        cargo +nightly fuzz run --fuzz-dir fuzz "$target" -- -max_total_time="$seconds" -max_len=65536 -rss_limit_mb=2048
done
