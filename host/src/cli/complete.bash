
# Names of pods, containers and images come from the program; all else is fixed.
_magikvm_names() {
    local cur word names=()
    _magikvm "$@"
    local words=("${COMP_WORDS[@]:1:COMP_CWORD}")
    # bash splits words at colons and equals signs; the program needs them whole.
    if [ -n "${COMP_LINE-}" ]; then
        local line="${COMP_LINE:0:COMP_POINT}"
        read -ra words <<<"$line"
        words=("${words[@]:1}")
        case "$line" in *[[:space:]]) words+=("") ;; esac
    fi
    [ "${#words[@]}" -gt 0 ] || return 0
    cur="${words[${#words[@]} - 1]}"
    while IFS= read -r word; do
        # Only the part behind the last colon is replaced.
        case "$cur" in *:*) word="${word#"${cur%:*}:"}" ;; esac
        names+=("$word")
    done < <("$1" __complete -- "${words[@]}" 2>/dev/null)
    [ "${#names[@]}" -eq 0 ] || COMPREPLY=("${names[@]}")
}

complete -F _magikvm_names -o bashdefault -o default magikvm
