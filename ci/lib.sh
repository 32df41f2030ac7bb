# shellcheck shell=bash
# Functions that the scripts of ci/ share. This file is sourced, not run. Every function can be called repeatedly: it does only
# what is missing.
#
# Settings, all optional:
#   MAGIKVM_CACHE            directory for compiled kernels, tools and the build directory [~/.cache/magikvm]
#   CARGO_TARGET_DIR         cargo's build directory [one in the cache, so that a fresh clone starts warm]
#   MAGIKVM_SHARED_TARGET=0  use ./target as cargo's build directory instead
#   MAGIKVM_FUZZ_SECONDS     seconds for which ci/test.sh runs each fuzz target [15]

# shellcheck disable=SC2034 # The scripts that source this file use these variables.

set -euo pipefail
export LC_ALL=C

REPO="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
CACHE="${MAGIKVM_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/magikvm}"
ARCH="$(uname -m)"
GUEST_TARGET="$ARCH-unknown-linux-gnu"
VHOST_DEVICE_VSOCK_VERSION=0.3.0
CARGO_DENY_VERSION=0.20.2

# For compiling the guest's kernel and our programs.
BUILD_PACKAGES=(gcc libc6-dev make flex bison bc tar xz-utils binutils libcap-ng-dev libelf-dev linux-source-6.12 libseccomp-dev)
# For running pods, and building the demo's container image.
RUN_PACKAGES=(qemu-system-x86 busybox-static e2fsprogs)
# For compiling for aarch64 and running its guests on a host of another architecture. ARM64_PACKAGES are unpacked, not installed:
# libseccomp for vminit, and a busybox for the tests' images.
AARCH64=aarch64-unknown-linux-gnu
AARCH64_PACKAGES=(gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-system-arm)
ARM64_PACKAGES=(libseccomp-dev busybox-static)
# For checking macOS: a C compiler with macOS's headers, from PyPI, for the C code in crates. Nothing is linked.
MACOS=aarch64-apple-darwin
ZIG_VERSION=0.17.1
# Digests of its wheels for x86_64 and aarch64.
ZIG_DIGESTS=(ea6cc5d87b033cf0aedfbc8f9549a908cae6c50ac31f1698188fa48a74524b54
    b7c5f02fccd40f89b999ee16a1f5ddced56e6182370f8affe494bcf8a28cf07e)
# Programs that the tests compare us with, programs that read our files, and the registry from which they pull. Where Debian starts
# the registry as a service, that service occupies port 5000 and is not used.
TEST_PACKAGES=(attr buildah ca-certificates containernetworking-plugins cpio curl dbus-user-session dnsmasq-base docker-registry erofs-utils fdisk fish iproute2 iptables libcap2-bin mmdebstrap openssl passt
    podman python3 python3-pip runc shellcheck skopeo socat systemd uidmap umoci zsh)
# Programs that the figures of pods in namespaces are compared with, which the host does not need otherwise: an OCI runtime, and what podman makes
# its pause container from.
PEER_PACKAGES=(crun libyajl2 catatonit)
# The loader of AppArmor profiles, for tests in the lab. It is unpacked, not installed: the host's programs would get profiles.
APPARMOR_PACKAGES=(apparmor)
# For the outer VM of the lab. Its kernel is the newest one of Debian 12, and is not installed.
LAB_PACKAGES=(busybox-static cpio kmod qemu-system-common qemu-system-x86 xz-utils zstd)
LAB_KERNEL=linux-image-6.12-cloud-amd64
# The lab's own QEMU: docs/lab.md says why it is newer than that of the product. It is unpacked, not installed.
LAB_QEMU_PACKAGES=(qemu-system-x86 qemu-system-data seabios)
LAB_QEMU_SUITE=bookworm-backports
# The Debian release of the large images that tests and figures use, and their packages in addition to the smallest system.
USERLAND_SUITE=bookworm
USERLAND_PACKAGES=python3,perl,git,iputils-ping,ca-certificates,curl
USERLAND_OTHER_PACKAGES=less,file,nano

mkdir -p "$CACHE/tools/bin"
cd "$REPO"
PATH="$CACHE/tools/bin:$PATH"
if [ -f "$HOME/.cargo/env" ]; then
    # shellcheck source=/dev/null
    . "$HOME/.cargo/env"
fi
export PATH

say() {
    if [ -t 1 ]; then printf '\033[1m==> %s\033[0m\n' "$*"; else printf '==> %s\n' "$*"; fi
}

die() {
    printf 'Error: %s\n' "$*" >&2
    exit 1
}

# How long each step took, for report_times.
STEP_TIMES=()

# step NAME COMMAND…: prints the name, runs the command, and prints how long it took.
step() {
    local name="$1" began=$SECONDS
    shift
    say "$name"
    "$@"
    STEP_TIMES+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
    say "$name: done in $((SECONDS - began)) s"
}

# report_times: prints what each step so far took. For `trap report_times EXIT`, so that it is also printed when a step fails.
report_times() {
    [ ${#STEP_TIMES[@]} = 0 ] || printf '%s\n' "Time of each step:" "${STEP_TIMES[@]}" "$(printf '%6d s  in all' $SECONDS)"
}

# count_lab_boots FILE: tells the lab to count its boots, and the repetitions among them, in a new file.
count_lab_boots() {
    rm -f "$1"
    export MAGIKVM_LAB_COUNT="$1"
}

# report_lab_boots: prints how many boots of the lab were repetitions because it, or a guest in it, had stood still. More than one in a
# hundred is a failure.
report_lab_boots() {
    [ -f "${MAGIKVM_LAB_COUNT:-}" ] || return 0
    local boots repeats allowed
    boots="$(grep -c '^boot' "$MAGIKVM_LAB_COUNT" || true)"
    repeats="$(grep -c '^repeat ' "$MAGIKVM_LAB_COUNT" || true)"
    allowed=$((boots > 100 ? boots / 100 : 1))
    say "The lab booted $boots times, $repeats times because it or a guest in it had stood still"
    sed -n 's/^repeat /    /p' "$MAGIKVM_LAB_COUNT"
    [ "$repeats" -le "$allowed" ] || die "the lab repeats too often: at most $allowed of $boots boots may be repetitions"
}

# run_tests LOG COMMAND…: runs a test command, and keeps its output in LOG for report_slow_tests.
run_tests() {
    local log="$1"
    shift
    "$@" 2>&1 | tee "$log"
}

# report_slow_tests LOG: prints the test programs, and of the conformance list the units, that took longest. Every reader reads to the end,
# because a writer that gets SIGPIPE fails the script.
report_slow_tests() {
    [ -f "$1" ] || return 0
    echo "The slowest test programs:"
    awk '/^ +Running / { name = $2 } /^test result: .* finished in / { sub("s$", "", $NF); printf "%6d s  %s\n", $NF, name }' "$1" |
        sort -rn | awk 'NR <= 8'
    [ -f "${MAGIKVM_LAB_COUNT:-}" ] || return 0
    echo "The conformance list, two units at a time:"
    awk '/^took / { split($3, part, "::"); sum[part[1]] += $2 } END { for (driver in sum) printf "%6d s  %s\n", sum[driver], driver }' \
        "$MAGIKVM_LAB_COUNT"
    sed -n 's/^took //p' "$MAGIKVM_LAB_COUNT" | sort -rn | awk 'NR <= 20 { printf "%6d s  %.100s\n", $1, $2 }'
}

# count_fresh_labs PROGRAM N DIR: runs the only test of PROGRAM, which boots a fresh lab, N times, two at a time, and prints how they ended. The
# outputs of those that did not pass stay in DIR. Anything but N passes is a failure.
count_fresh_labs() {
    local program="$1" count="$2" dir="$3" passed silent still
    rm -rf "$dir"
    mkdir -p "$dir"
    touch "$dir/passed"
    # shellcheck disable=SC2016 # The variables are those of the inner shell.
    seq "$count" | xargs -P 2 -I '{}' sh -c 'if "$1" >"$2/{}" 2>&1; then echo {} >>"$2/passed"; rm "$2/{}"; fi' count "$program" "$dir"
    passed="$(wc -l <"$dir/passed")"
    silent="$(find "$dir" -name '[0-9]*' -exec grep -l 'Reason: AgentSilent' {} + | wc -l)"
    still="$(find "$dir" -name '[0-9]*' -exec grep -l 'without a result' {} + | wc -l)"
    say "$passed of $count fresh labs ran their pod; in $silent the pod's first VM was silent, $still stood still"
    [ "$passed" = "$count" ] || die "not all of $count fresh labs ran their pod; the outputs of the others are in $dir"
}

as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this command needs root, and sudo is missing; run it as root: $*"
    fi
}

# need_packages NAME…: installs the Debian packages that are missing.
need_packages() {
    local missing=() package
    for package in "$@"; do
        # shellcheck disable=SC2016 # The field is dpkg-query's, not the shell's.
        if [ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]; then
            missing+=("$package")
        fi
    done
    if [ ${#missing[@]} = 0 ]; then
        return
    fi
    command -v apt-get >/dev/null || die "this is not a Debian system; install the content of these packages: ${missing[*]}"
    say "Installing ${missing[*]}"
    if [ -z "${APT_UPDATED:-}" ]; then
        as_root apt-get update -q
        APT_UPDATED=1
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${missing[@]}"
}

# need_rust: installs the toolchain of rust-toolchain.toml with its components, if it is missing.
need_rust() {
    command -v rustup >/dev/null || die "rustup is missing; install it from https://rustup.rs"
    local channel
    channel="$(sed -n 's/^channel = "\(.*\)"$/\1/p' rust-toolchain.toml)"
    if ! rustup run "$channel" rustfmt --version >/dev/null 2>&1 ||
        ! rustup run "$channel" cargo-clippy --version >/dev/null 2>&1; then
        say "Installing Rust $channel"
        rustup toolchain install "$channel" --profile minimal --component rustfmt --component clippy
    fi
    choose_target_dir "$channel"
}

# The build directory is in the cache, one for each set of dependencies and compiler, so that a fresh clone starts warm.
choose_target_dir() {
    if [ -n "${CARGO_TARGET_DIR:-}" ]; then
        export CARGO_TARGET_DIR
    elif [ "${MAGIKVM_SHARED_TARGET:-1}" = 0 ]; then
        export CARGO_TARGET_DIR="$REPO/target"
    else
        local key
        key="$({ echo "$1"; cat Cargo.lock; } | sha256sum | cut -c1-16)"
        export CARGO_TARGET_DIR="$CACHE/target-$key"
        mkdir -p "$CARGO_TARGET_DIR"
        touch "$CARGO_TARGET_DIR"
        # Remove build directories that nobody has used for two weeks.
        find "$CACHE" -maxdepth 1 -name 'target-*' -mtime +14 -exec rm -rf {} +
    fi
    DIST="$CARGO_TARGET_DIR/dist"
    mkdir -p "$DIST"
    say "Building in $CARGO_TARGET_DIR"
}

# build_programs [CARGO OPTION…]: builds magikvm, magikvm-image and the static programs vminit and magikvm-containers into $DIST.
build_programs() {
    cargo build --locked --release -p magikvm -p magikvm-image "$@"
    install -m 755 "$CARGO_TARGET_DIR/release/magikvm" "$CARGO_TARGET_DIR/release/magikvm-image" "$DIST/"
    build_static "$GUEST_TARGET" "/usr/lib/$ARCH-linux-gnu" strip vminit "$DIST/vminit" magikvm-containers "$DIST/magikvm-containers"
}

# build_static TARGET LIBRARIES STRIP PROGRAM FILE…: builds static programs, vminit or magikvm-containers, for a target, with the libseccomp of
# the directory LIBRARIES.
build_static() {
    local target="$1" libraries="$2" strip="$3" packages=() files=() program
    shift 3
    while [ $# -gt 0 ]; do
        packages+=(-p "$1")
        files+=("$1" "$2")
        shift 2
    done
    RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
        LIBSECCOMP_LINK_TYPE=static LIBSECCOMP_LIB_PATH="$libraries" \
        cargo build --locked --profile guest "${packages[@]}" --target "$target"
    set -- "${files[@]}"
    while [ $# -gt 0 ]; do
        program="$CARGO_TARGET_DIR/$target/guest/$1"
        # The initramfs takes memory in every pod's VM, so it has no symbols.
        "$strip" --strip-all -o "$2.new" "$program"
        mv "$2.new" "$2"
        shift 2
    done
}

# need_aarch64: installs what compiling for aarch64 needs. Call it after need_rust.
need_aarch64() {
    if [ "$ARCH" = aarch64 ]; then
        return
    fi
    need_packages "${AARCH64_PACKAGES[@]}"
    if ! rustup target list --installed | grep -xF "$AARCH64" >/dev/null; then
        rustup target add "$AARCH64"
    fi
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc AR_aarch64_unknown_linux_gnu=aarch64-linux-gnu-ar
}

# ensure_macos_check: installs what `cargo clippy --target $MACOS` needs. Call it after need_rust.
ensure_macos_check() {
    local key zig work
    if ! rustup target list --installed | grep -xF "$MACOS" >/dev/null; then
        rustup target add "$MACOS"
    fi
    key="$({ declare -f ensure_macos_check; echo "$ARCH $ZIG_VERSION ${ZIG_DIGESTS[*]}"; } | sha256sum | cut -c1-16)"
    zig="$CACHE/macos-$key"
    if [ ! -d "$zig" ]; then
        work="$(mktemp -d -p "$CACHE")"
        echo "ziglang==$ZIG_VERSION ${ZIG_DIGESTS[*]/#/--hash=sha256:}" >"$work/requirements"
        python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --no-deps --only-binary :all: \
            --require-hashes --requirement "$work/requirements" --target "$work/packages"
        # cc-rs passes other names of the target than the one that the compiler knows.
        cat >"$work/cc" <<'CC'
#!/usr/bin/env bash
unset SDKROOT
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --target=* | -mmacosx-version-min=*) ;;
        -target | -arch | -isysroot) shift ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
exec "$(dirname "$0")/packages/ziglang/zig" cc -target aarch64-macos "${arguments[@]}"
CC
        cat >"$work/ar" <<'AR'
#!/bin/sh
exec "$(dirname "$0")/packages/ziglang/zig" ar "$@"
AR
        chmod 755 "$work" "$work/cc" "$work/ar"
        mv "$work" "$zig"
    fi
    # cc-rs reads these variables. There is no SDK; without SDKROOT cc-rs would run Apple's xcrun.
    export CC_aarch64_apple_darwin="$zig/cc" AR_aarch64_apple_darwin="$zig/ar" SDKROOT="$zig/packages/ziglang/lib/libc/darwin"
    export ZIG_GLOBAL_CACHE_DIR="$CACHE/zig" ZIG_LOCAL_CACHE_DIR="$CACHE/zig"
}

# ensure_arm64_packages: unpacks ARM64_PACKAGES once into the cache and sets ARM64_ROOT to the directory. apt uses separate lists,
# so the host's architectures and packages do not change; it checks signatures as usual.
ensure_arm64_packages() {
    local key work options
    key="$({ declare -f ensure_arm64_packages; echo "${ARM64_PACKAGES[*]}"; cat /etc/os-release; } | sha256sum | cut -c1-16)"
    ARM64_ROOT="$CACHE/arm64-$key"
    if [ -d "$ARM64_ROOT" ]; then
        return
    fi
    command -v apt-get >/dev/null || die "this is no Debian system; packages for arm64 come from apt"
    work="$(mktemp -d -p "$CACHE")"
    mkdir -p "$work"/{lists,archives}/partial "$work"/{debs,root}
    options=(-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$work" -o Dir::State::Lists="$work/lists"
        -o Dir::State::status=/dev/null -o Dir::Cache="$work" -o APT::Sandbox::User= -o Acquire::Languages=none
        -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false -o Acquire::Retries=3)
    apt-get "${options[@]}" update
    (cd "$work/debs" && apt-get "${options[@]}" download "${ARM64_PACKAGES[@]}")
    local package
    for package in "$work"/debs/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
    mv "$work/root" "$ARM64_ROOT"
    rm -rf "$work"
}

# ensure_aarch64_guest: builds a guest image for aarch64 in $DIST/guest-aarch64, and sets ARM64_BUSYBOX to the path of a busybox for
# its containers. On an aarch64 host these are the ordinary ones. Call it after build_programs and need_aarch64.
ensure_aarch64_guest() {
    if [ "$ARCH" = aarch64 ]; then
        ensure_guest_image "$DIST/guest-aarch64"
        ARM64_BUSYBOX="$(command -v busybox)"
        return
    fi
    ensure_arm64_packages
    ARM64_BUSYBOX="$ARM64_ROOT/bin/busybox"
    build_static "$AARCH64" "$ARM64_ROOT/usr/lib/aarch64-linux-gnu" aarch64-linux-gnu-strip vminit "$DIST/vminit-aarch64"
    "$DIST/magikvm-image" build --cache "$CACHE" --init "$DIST/vminit-aarch64" --out "$DIST/guest-aarch64"
}

# ensure_tool PROGRAM CRATE VERSION [CARGO OPTION…]: compiles a program from crates.io once and keeps it in the cache.
ensure_tool() {
    local program="$1" crate="$2" version="$3"
    shift 3
    if "$CACHE/tools/bin/$program" --version 2>/dev/null | grep -F "$version" >/dev/null; then
        return
    fi
    say "Compiling $crate $version into $CACHE/tools"
    CARGO_TARGET_DIR="$CACHE/tools/build" cargo install --quiet --locked --root "$CACHE/tools" --force \
        --version "$version" "$@" "$crate"
    rm -rf "$CACHE/tools/build"
}

# ensure_vhost_vsock: provides vhost-device-vsock, QEMU's vsock. An installed program is preferred.
ensure_vhost_vsock() {
    if [ -z "${MAGIKVM_VHOST_DEVICE_VSOCK:-}" ] && ! command -v vhost-device-vsock >/dev/null; then
        ensure_tool vhost-device-vsock vhost-device-vsock "$VHOST_DEVICE_VSOCK_VERSION"
    fi
}

# ensure_guest_image [DIR]: builds a guest image in DIR, or where magikvm looks for one. The kernel is compiled only once.
ensure_guest_image() {
    local out="${1:-${MAGIKVM_GUEST:-}}"
    "$DIST/magikvm-image" build --cache "$CACHE" ${out:+--out "$out"}
}

# make_demo_layout DIR: builds an OCI image layout with busybox and nothing else. The same busybox gives the same bytes.
make_demo_layout() {
    local layout="$1" work busybox applet
    busybox="$(command -v busybox)" || die "busybox is missing (Debian package busybox-static)"
    work="$(mktemp -d)"
    mkdir -p "$work"/rootfs/{bin,etc,root,tmp} "$work/layout/blobs/sha256"
    chmod 755 "$work"/rootfs "$work"/rootfs/{bin,etc}
    chmod 700 "$work/rootfs/root"
    chmod 1777 "$work/rootfs/tmp"
    install -m 755 "$busybox" "$work/rootfs/bin/busybox"
    for applet in $("$busybox" --list); do
        [ "$applet" = busybox ] || ln -s busybox "$work/rootfs/bin/$applet"
    done
    echo 'root:x:0:0:root:/root:/bin/sh' >"$work/rootfs/etc/passwd"
    echo 'root:x:0:' >"$work/rootfs/etc/group"
    tar -C "$work/rootfs" --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=gnu -cf "$work/layer" .

    local layer config manifest goarch=amd64
    [ "$ARCH" = aarch64 ] && goarch=arm64
    layer="$(sha256sum <"$work/layer" | cut -d' ' -f1)"
    printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
        "$goarch" "$layer" >"$work/config"
    config="$(sha256sum <"$work/config" | cut -d' ' -f1)"
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:%s","size":%s}]}' \
        "$config" "$(stat -c %s "$work/config")" "$layer" "$(stat -c %s "$work/layer")" >"$work/manifest"
    manifest="$(sha256sum <"$work/manifest" | cut -d' ' -f1)"
    printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"1"},"platform":{"architecture":"%s","os":"linux"}}]}' \
        "$manifest" "$(stat -c %s "$work/manifest")" "$goarch" >"$work/layout/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$work/layout/oci-layout"
    mv "$work/layer" "$work/layout/blobs/sha256/$layer"
    mv "$work/config" "$work/layout/blobs/sha256/$config"
    mv "$work/manifest" "$work/layout/blobs/sha256/$manifest"
    rm -rf "$layout"
    mkdir -p "$(dirname "$layout")"
    mv "$work/layout" "$layout"
    rm -rf "$work"
}

# ensure_demo_image: builds and imports the container image that the examples use.
ensure_demo_image() {
    make_demo_layout "$DIST/demo-image"
    "$DIST/magikvm" image import "oci:$DIST/demo-image:1" --name demo/busybox:1
}

# debian_tree TAR [PACKAGES]: writes an archive of the smallest Debian system and these packages.
debian_tree() {
    # The host's own name and name servers must not be in it.
    # shellcheck disable=SC2016 # $1 is for the shell that runs the hook.
    as_root env SOURCE_DATE_EPOCH=1700000000 mmdebstrap --quiet --variant=minbase --format=tar ${2:+--include="$2"} \
        --customize-hook='echo debian >"$1/etc/hostname"' --customize-hook=': >"$1/etc/resolv.conf"' \
        --aptopt='Acquire::Retries "3"' "$USERLAND_SUITE" - >"$1"
}

# make_debian_userland DIR: builds an OCI image layout with two images that share their first layer.
#   userland: the smallest system; python, perl, git and others; a small layer that removes the documentation
#   other: the smallest system; a few small packages
make_debian_userland() {
    local work layout created=2023-11-14T22:13:20Z name
    work="$(mktemp -d -p "$CACHE")"
    layout="$work/layout"
    debian_tree "$work/base.tar"
    debian_tree "$work/userland.tar" "$USERLAND_PACKAGES"
    debian_tree "$work/other.tar" "$USERLAND_OTHER_PACKAGES"
    umoci init --layout "$layout"
    umoci new --image "$layout:base"
    umoci config --image "$layout:base" --no-history --created "$created" --config.cmd /bin/bash
    umoci raw add-layer --image "$layout:base" --history.created "$created" "$work/base.tar"
    for name in userland other; do
        ci/added-layer.py "$work/base.tar" "$work/$name.tar" "$work/layer.tar"
        umoci raw add-layer --image "$layout:base" --tag "$name" --history.created "$created" "$work/layer.tar"
    done
    umoci insert --image "$layout:userland" --history.created "$created" --whiteout /usr/share/doc
    umoci rm --image "$layout:base"
    umoci gc --layout "$layout"
    rm -rf "$1"
    mv "$layout" "$1"
    rm -rf "$work"
}

# ensure_debian_userland: builds the images of make_debian_userland once, keeps them in the cache, and sets USERLAND to their layout.
ensure_debian_userland() {
    local key
    key="$({
        declare -f debian_tree make_debian_userland
        cat ci/added-layer.py
        echo "$ARCH $USERLAND_SUITE $USERLAND_PACKAGES $USERLAND_OTHER_PACKAGES"
    } | sha256sum | cut -c1-16)"
    USERLAND="$CACHE/userland-$key"
    [ -f "$USERLAND/index.json" ] || step "Building images of a Debian system" make_debian_userland "$USERLAND"
}

# make_lab PACKAGE DIR: builds the outer VM of tests/lab from a Debian kernel package, which is not installed: the kernel as an
# uncompressed ELF file, its modules, and an initramfs that mounts the host's files and executes the scripts that tests/lab puts there.
make_lab() {
    local package="$1" work image release offset length tree module
    work="$(mktemp -d -p "$CACHE")"
    # apt's own user may not write here, and apt would print a warning.
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "$package")
    dpkg-deb -x "$work/$package"_*.deb "$work/package"
    image="$(echo "$work"/package/boot/vmlinuz-*)"
    release="${image##*/vmlinuz-}"
    mkdir -p "$work/lab/modules/lib/modules" "$work/initramfs/bin"

    # Decompressing the kernel here saves time at every boot. See "The real-mode kernel header" in Linux's
    # Documentation/arch/x86/boot.rst: the payload's offset counts from the end of the set-up sectors, and its last four bytes are
    # its size.
    offset=$((($(od -An -tu1 -j 497 -N 1 "$image") + 1) * 512 + $(od -An -tu4 -j 584 -N 4 "$image")))
    length=$(($(od -An -tu4 -j 588 -N 4 "$image") - 4))
    tail -c +$((offset + 1)) "$image" >"$work/payload"
    truncate -s "$length" "$work/payload"
    zstd -dcq "$work/payload" >"$work/lab/vmlinux" || die "the kernel in $package is not compressed with zstd"

    tree="$work/lab/modules/lib/modules/$release"
    mv "$work/package/lib/modules/$release" "$tree"
    find "$tree" -name '*.ko.xz' -exec xz -d {} +
    depmod -b "$work/lab/modules" "$release"
    for module in fs/overlayfs/overlay virt/lib/irqbypass arch/x86/kvm/kvm arch/x86/kvm/kvm-amd; do
        cp "$tree/kernel/$module.ko" "$work/initramfs/"
    done
    install -m 755 "$(command -v busybox)" "$work/initramfs/bin/busybox"
    cat >"$work/initramfs/init" <<'INIT'
#!/bin/busybox sh
set -e
/bin/busybox mkdir -p /proc /sys /lower
/bin/busybox mount -t proc -o nosuid,nodev,noexec proc /proc
/bin/busybox insmod /overlay.ko
/bin/busybox mount -t virtiofs lab /lower
exec /bin/busybox sh /lower/run/init.sh
INIT
    chmod 755 "$work/initramfs/init"
    (cd "$work/initramfs" && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --quiet) >"$work/lab/initramfs"
    rm -rf "$2"
    mv "$work/lab" "$2"
    rm -rf "$work"
}

# ensure_lab_qemu: unpacks LAB_QEMU_PACKAGES once for each of their versions, and sets MAGIKVM_LAB_QEMU to their program. The lists of the suite are
# kept apart, so the host's packages do not change; apt checks signatures as usual.
ensure_lab_qemu() {
    [ -z "${MAGIKVM_LAB_QEMU:-}" ] || return 0
    local key dir work mirror options
    key="$({ declare -f ensure_lab_qemu; echo "${LAB_QEMU_PACKAGES[*]} $LAB_QEMU_SUITE"; cat /etc/os-release; } | sha256sum | cut -c1-16)"
    dir="$CACHE/lab-qemu-$key"
    if [ ! -x "$dir/qemu" ]; then
        say "Unpacking the lab's QEMU from $LAB_QEMU_SUITE"
        mirror="$(apt-cache policy qemu-system-x86 | sed -n 's|^ *[0-9]* \(http[^ ]*\) bookworm/main .*|\1|p' | awk 'NR == 1')"
        [ -n "$mirror" ] || die "apt has no mirror of Debian 12 with qemu-system-x86; set MAGIKVM_LAB_QEMU to a qemu-system-x86_64 for the lab"
        work="$(mktemp -d -p "$CACHE")"
        mkdir -p "$work"/{lists,archives}/partial "$work"/{debs,lab}
        echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $LAB_QEMU_SUITE main" >"$work/sources.list"
        options=(-q -o Dir::Etc::SourceList="$work/sources.list" -o Dir::Etc::SourceParts=/dev/null -o Dir::State::Lists="$work/lists"
            -o Dir::Cache="$work" -o APT::Sandbox::User= -o Acquire::Languages=none -o Acquire::Retries=3)
        apt-get "${options[@]}" update
        (cd "$work/debs" && apt-get "${options[@]}" download "${LAB_QEMU_PACKAGES[@]}")
        local package
        for package in "$work"/debs/*.deb; do
            dpkg-deb --extract "$package" "$work/lab"
        done
        cat >"$work/lab/qemu" <<'QEMU'
#!/bin/sh
here="$(dirname "$0")"
exec "$here/usr/bin/qemu-system-x86_64" -L "$here/usr/share/qemu" -L "$here/usr/share/seabios" "$@"
QEMU
        chmod 755 "$work/lab/qemu"
        "$work/lab/qemu" --version >/dev/null || die "the lab's QEMU does not start"
        rm -rf "$dir"
        mv "$work/lab" "$dir"
        rm -rf "$work"
    fi
    export MAGIKVM_LAB_QEMU="$dir/qemu"
}

# ensure_peers: unpacks PEER_PACKAGES once for each of their versions, and sets MAGIKVM_BENCH_PEERS to their directory. They are not installed,
# because podman chooses crun where that is installed, and crun 1.8 refuses hosts that have control groups of both versions.
ensure_peers() {
    local key work package
    key="$({ declare -f ensure_peers; apt-cache policy "${PEER_PACKAGES[@]}" | grep Candidate; } | sha256sum | cut -c1-16)"
    export MAGIKVM_BENCH_PEERS="$CACHE/peers-$key"
    [ ! -d "$MAGIKVM_BENCH_PEERS" ] || return 0
    say "Unpacking ${PEER_PACKAGES[*]}"
    work="$(mktemp -d -p "$CACHE")"
    # apt's own user may not write here, and apt would print a warning.
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "${PEER_PACKAGES[@]}")
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
    mv "$work/root" "$MAGIKVM_BENCH_PEERS"
    rm -rf "$work"
}

# ensure_apparmor: unpacks APPARMOR_PACKAGES once for each of their versions, and sets MAGIKVM_TEST_APPARMOR to their directory.
ensure_apparmor() {
    local key work package
    key="$({ declare -f ensure_apparmor; apt-cache policy "${APPARMOR_PACKAGES[@]}" | grep Candidate; } | sha256sum | cut -c1-16)"
    export MAGIKVM_TEST_APPARMOR="$CACHE/apparmor-$key"
    [ ! -d "$MAGIKVM_TEST_APPARMOR" ] || return 0
    say "Unpacking ${APPARMOR_PACKAGES[*]}"
    work="$(mktemp -d -p "$CACHE")"
    # apt's own user may not write here, and apt would print a warning.
    (cd "$work" && apt-get download -q -o APT::Sandbox::User=root "${APPARMOR_PACKAGES[@]}")
    for package in "$work"/*.deb; do
        dpkg-deb --extract "$package" "$work/root"
    done
    mv "$work/root" "$MAGIKVM_TEST_APPARMOR"
    rm -rf "$work"
}

# whole_pods BENCH [ARGUMENT…]: runs a benchmark whose pods run under QEMU. Call it after build_programs.
whole_pods() {
    ensure_vhost_vsock
    step "Building the guest image" ensure_guest_image "$DIST/guest"
    make_demo_layout "$DIST/demo-image"
    choose_accel
    [ ${#ACCEL[@]} = 0 ] || export MAGIKVM_ACCEL=tcg
    export MAGIKVM_TEST_GUEST="$DIST/guest"
    run_bench "$@"
}

# run_bench BENCH [ARGUMENT…]: runs a benchmark of the programs in $DIST. Call it after build_programs, and make_demo_layout where it uses that.
run_bench() {
    local bench="$1"
    shift
    export MAGIKVM_BIN="$DIST/magikvm" MAGIKVM_DEMO_IMAGE="$DIST/demo-image"
    cargo bench --locked -p magikvm-tests --bench "$bench" -- "$@"
}

# ensure_lab: builds the outer VM of the lab once for each version of Debian's kernel, and sets MAGIKVM_LAB_DIR to it.
ensure_lab() {
    [ "$ARCH" = x86_64 ] || die "the lab emulates an x86-64 host and runs the programs of this one, which is $ARCH"
    need_packages "${LAB_PACKAGES[@]}"
    ensure_lab_qemu
    local package key
    apt-cache show "$LAB_KERNEL" >/dev/null 2>&1 || as_root apt-get update -q
    package="$(apt-cache depends --important "$LAB_KERNEL" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | awk 'NR == 1')"
    [ -n "$package" ] || die "apt does not find Debian's package $LAB_KERNEL; it is in the security suite of Debian 12"
    key="$({
        declare -f make_lab
        apt-cache policy "$package" | grep Candidate
        echo "$package"
        sha256sum "$(command -v busybox)"
    } | sha256sum | cut -c1-16)"
    export MAGIKVM_LAB_DIR="$CACHE/lab-$key"
    [ -f "$MAGIKVM_LAB_DIR/initramfs" ] || step "Building the lab from $package" make_lab "$package" "$MAGIKVM_LAB_DIR"
    touch "$MAGIKVM_LAB_DIR"
    find "$CACHE" -maxdepth 1 -name 'lab-????????????????' -mtime +14 -exec rm -rf {} +
}

# check_scripts: checks all shell scripts of the repository.
check_scripts() {
    shellcheck --external-sources ci/*.sh .ci/run tests/lab/src/guest/*.sh
}

# choose_accel: sets ACCEL to the options of `magikvm run` for this host, and prints why.
choose_accel() {
    ACCEL=()
    local report
    if [ -n "${MAGIKVM_ACCEL:-}" ]; then
        say "Acceleration: $MAGIKVM_ACCEL, set by MAGIKVM_ACCEL"
    elif report="$("$DIST/magikvm" doctor --hardware 2>&1)"; then
        say "Acceleration: the host's hardware virtualization"
    else
        printf '%s\n' "$report"
        say "Acceleration: no usable hardware virtualization, so the pod runs under software emulation (--accel tcg; not a security boundary)"
        ACCEL=(--accel tcg)
    fi
}
