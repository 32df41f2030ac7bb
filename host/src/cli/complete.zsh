# Names of pods, containers and images come from the program; all else is fixed.
_magikvm_names() {
    local -a names
    names=(${(f)"$(${words[1]} __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)"})
    if (( ${#names} )); then
        compadd -a names
    else
        _magikvm "$@"
    fi
}

compdef _magikvm_names magikvm
if [ "$funcstack[1]" = "_magikvm" ]; then
    _magikvm_names "$@"
fi
