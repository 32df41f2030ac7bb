#!/usr/bin/env bash
# Runs fuzz targets, and fails when one of them finds something: ci/fuzz.sh [SECONDS [TARGET…]]. By default every target runs
# for a minute. Findings are stored in the cache and printed; the repository is not changed. The script installs a nightly
# compiler if there is none.

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

fuzz_one() {
    local target="$1" seconds="$2" found="$CACHE/fuzz-found" log="$WORK/$1.log"
    mkdir -p "$WORK/$target" "$found"
    cp -r "fuzz/corpus/$target/." "$WORK/$target/"
    if "$BUILT/$target" -max_total_time="$seconds" -max_len=65536 -timeout=20 -rss_limit_mb=2048 \
        -artifact_prefix="$WORK/found-$target-" -verbosity=0 -print_final_stats=1 "$WORK/$target" >"$log" 2>&1; then
        printf '%s: %s\n' "$target" "$(sed -nE 's/^stat::(number_of_executed_units|peak_rss_mb): */\1 /p' "$log" | paste -sd ' ')"
        return
    fi
    cat "$log"
    local file
    for file in "$WORK/found-$target"-*; do
        [ -e "$file" ] || continue
        mv "$file" "$found/${file#"$WORK/found-"}"
        file="$found/${file#"$WORK/found-"}"
        say "$file; to reproduce: $BUILT/$target $file"
        base64 -w 100 "$file"
    done
    die "the fuzz target $target failed"
}

# fuzz_all SECONDS TARGET…: as many targets at a time as there are processors. All of them run, whatever one of them finds.
fuzz_all() {
    local seconds="$1" running=0 failed=0 target
    shift
    for target in "$@"; do
        if [ "$running" -ge "$(nproc)" ]; then
            wait -n || failed=1
            running=$((running - 1))
        fi
        fuzz_one "$target" "$seconds" &
        running=$((running + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || failed=1
        running=$((running - 1))
    done
    return "$failed"
}

seconds="${1:-60}"
[[ "$seconds" =~ ^[0-9]+$ ]] || die "$seconds is not a number of seconds; usage: ci/fuzz.sh [SECONDS [TARGET…]]"
targets=("${@:2}")
if [ ${#targets[@]} = 0 ]; then
    for file in fuzz/fuzz_targets/*.rs; do
        targets+=("$(basename "$file" .rs)")
    done
fi
for target in "${targets[@]}"; do
    [ -e "fuzz/fuzz_targets/$target.rs" ] || die "unknown fuzz target: $target"
done
need_packages g++
rustup run nightly rustc --version >/dev/null 2>&1 ||
    step "Installing a nightly compiler" rustup toolchain install nightly --profile minimal
nightly="$(rustup run nightly rustc --version)"
ensure_tool cargo-fuzz cargo-fuzz 0.13.1

cargo +nightly fetch --quiet --locked --manifest-path fuzz/Cargo.toml ||
    die "fuzz/Cargo.lock is out of date; update it with: cargo metadata --manifest-path fuzz/Cargo.toml >/dev/null, and commit it"

# One directory for each set of dependencies and compiler, as in choose_target_dir.
build_dir="$CACHE/fuzz-$({ echo "$nightly"; cat fuzz/Cargo.lock; } | sha256sum | cut -c1-16)"
mkdir -p "$build_dir"
touch "$build_dir"
find "$CACHE" -maxdepth 1 -name 'fuzz-????????????????' -mtime +14 -exec rm -rf {} +
# No sanitizer: all fuzzed code is safe Rust, and without one the targets run twice as many inputs.
step "Building the fuzz targets" cargo +nightly fuzz build --fuzz-dir fuzz --sanitizer none --target-dir "$build_dir"
BUILT="$build_dir/$GUEST_TARGET/release"

WORK="$(mktemp -d)"
trap 'rm -rf "$WORK"' EXIT
step "Fuzzing ${#targets[@]} targets for $seconds s each" fuzz_all "$seconds" "${targets[@]}"
