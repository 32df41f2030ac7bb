#!/usr/bin/env bash
# Installs magikvm beneath a prefix, or removes exactly what it has installed there.
#   ci/install.sh [--prefix DIR] [--from DIR]   installs [/usr/local]
#   ci/install.sh --uninstall [--prefix DIR]    removes every installed file, and the directories that were made for them
#
# Without --from it builds everything first, as ci/demo.sh does. With --from it builds nothing: the directory must hold magikvm,
# magikvm-image, vhost-device-vsock and the directory guest. DESTDIR is put before the prefix, for packages.
#
# Installed are bin/magikvm, bin/magikvm-image, libexec/magikvm/vhost-device-vsock, the guest image in share/magikvm/guest, the
# completions of bash, zsh and fish, and the manual pages. share/magikvm/installed lists the files; a line that ends in a slash is
# a directory.

usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

prefix=/usr/local from='' verb=install
while [ $# -gt 0 ]; do
    case "$1" in
        --prefix | --from)
            if [ -z "${2:-}" ]; then echo "Error: $1 needs a directory" >&2; exit 2; fi
            if [ "$1" = --prefix ]; then prefix="$2"; else from="$2"; fi
            shift
            ;;
        --prefix=?*) prefix="${1#*=}" ;;
        --from=?*) from="${1#*=}" ;;
        --uninstall) verb=uninstall ;;
        -h | --help) usage; exit 0 ;;
        *) echo "Error: unknown argument $1; see ci/install.sh --help" >&2; exit 2 ;;
    esac
    shift
done
# lib.sh changes the directory.
prefix="$(realpath -ms -- "$prefix")"
[ -z "$from" ] || from="$(realpath -ms -- "$from")"
target="${DESTDIR:+$(realpath -ms -- "$DESTDIR")}$prefix"

# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

LIST=share/magikvm/installed

# there COMMAND…: runs it as the user who may write beneath the prefix.
there() {
    local dir="$target"
    while [ ! -e "$dir" ]; do dir="$(dirname "$dir")"; done
    if [ -w "$dir" ]; then "$@"; else as_root "$@"; fi
}

# listed LINE: whether a line names something beneath the prefix.
listed() {
    case "/$1/" in
        */../* | */./* | //*) [ "$1" = ./ ] ;;
        *) return 0 ;;
    esac
}

uninstall() {
    local line list="$target/$LIST" lines=()
    [ -f "$list" ] || die "$list is not there: magikvm is not installed beneath $target by ci/install.sh"
    mapfile -t lines <"$list"
    for line in "${lines[@]}"; do
        listed "$line" || die "$list names ${line@Q}, which is not beneath the prefix; nothing was removed"
    done
    for line in "${lines[@]}"; do
        case "$line" in
            */) ;;
            *) there rm -f -- "$target/$line" ;;
        esac
    done
    # The deepest directories first. What others have put into one stays, with its directory.
    printf '%s\n' "${lines[@]}" | LC_ALL=C sort -r | while IFS= read -r line; do
        case "$line" in
            ./) there rmdir --ignore-fail-on-non-empty -- "$target" ;;
            */) [ ! -d "$target/$line" ] || there rmdir --ignore-fail-on-non-empty -- "$target/$line" ;;
        esac
    done
}

# add MODE SOURCE TARGET: one more file to install.
modes=() sources=() targets=()
add() {
    [ -f "$2" ] || die "$2 is not there"
    modes+=("$1")
    sources+=("$2")
    targets+=("$3")
}

# missing_dirs: the directories beneath the prefix that have to be made, each with a slash. ./ is the prefix itself.
missing_dirs() {
    local file dir
    for file in "${targets[@]}" "$LIST"; do
        dir="$(dirname "$file")"
        while [ ! -d "$target/$dir" ]; do
            printf '%s/\n' "$dir"
            [ "$dir" != . ] || break
            dir="$(dirname "$dir")"
        done
    done | LC_ALL=C sort -u
}

install_all() {
    local work index page shell made=() kept=()
    work="$(mktemp -d)"
    # shellcheck disable=SC2064 # The directory is known now.
    trap "rm -rf -- '$work'" EXIT
    add 755 "$from/magikvm" bin/magikvm
    add 755 "$from/magikvm-image" bin/magikvm-image
    add 755 "$from/vhost-device-vsock" libexec/magikvm/vhost-device-vsock
    add 755 "$from/magikvm-containers" libexec/magikvm/magikvm-containers
    for index in vmlinux initramfs manifest.json; do
        add 644 "$from/guest/$index" "share/magikvm/guest/$index"
    done
    for shell in bash zsh fish; do
        "$from/magikvm" completions "$shell" >"$work/$shell"
    done
    add 644 "$work/bash" share/bash-completion/completions/magikvm
    add 644 "$work/zsh" share/zsh/site-functions/_magikvm
    add 644 "$work/fish" share/fish/vendor_completions.d/magikvm.fish
    mkdir "$work/man"
    "$from/magikvm" __man "$work/man"
    for page in "$work"/man/*.1; do
        add 644 "$page" "share/man/man1/$(basename "$page")"
    done

    # The directories of an earlier installation are still ours, and its files that are no longer installed go.
    if [ -f "$target/$LIST" ]; then
        mapfile -t kept < <(grep '/$' "$target/$LIST" || true)
        uninstall
    fi
    mapfile -t made < <(missing_dirs)
    printf '%s\n' "${kept[@]}" "${made[@]}" "${targets[@]}" "$LIST" | sed '/^$/d' | LC_ALL=C sort -u >"$work/installed"
    there mkdir -p "$target/$(dirname "$LIST")"
    # The list comes first, so that an interrupted installation can be removed.
    there install -m 644 "$work/installed" "$target/$LIST"
    for index in "${!targets[@]}"; do
        there install -D -m "${modes[$index]}" "${sources[$index]}" "$target/${targets[$index]}"
    done
}

# build: builds all that is installed, and collects it in a directory for --from.
build() {
    need_packages "${BUILD_PACKAGES[@]}" "${RUN_PACKAGES[@]}"
    need_rust
    step "Building the programs" build_programs
    ensure_vhost_vsock
    step "Building the guest image" ensure_guest_image "$DIST/guest"
    install -m 755 "${MAGIKVM_VHOST_DEVICE_VSOCK:-$(command -v vhost-device-vsock)}" "$DIST/vhost-device-vsock"
    from="$DIST"
}

case "$verb" in
    uninstall)
        uninstall
        say "magikvm is removed from $target"
        ;;
    install)
        [ -n "$from" ] || build
        umask 022
        install_all
        say "magikvm is installed beneath $target; ci/install.sh --uninstall removes it"
        case "${DESTDIR:+:$prefix/bin}:$PATH:" in
            *":$prefix/bin:"*) ;;
            *) say "$prefix/bin is not in PATH: run export PATH=\"$prefix/bin:\$PATH\"" ;;
        esac
        ;;
esac
