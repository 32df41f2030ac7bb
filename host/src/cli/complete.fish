
# Names of pods, containers and images come from the program; all else is fixed.
function __magikvm_names
    set -l words (commandline -opc)
    set -e words[1]
    magikvm __complete -- $words (commandline -ct) 2>/dev/null
end

complete -c magikvm -n '__fish_seen_subcommand_from inspect logs exec attach port-forward stop pause resume kill rm wait stats events' -f
complete -c magikvm -a '(__magikvm_names)'
