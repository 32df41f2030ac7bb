
# Names of pods, containers and images come from the program; all else is fixed.
function __magikvm_names
    set -l words (commandline -opc)
    set -e words[1]
    magikvm __complete -- $words (commandline -ct) 2>/dev/null
end

complete -c magikvm -n '__fish_seen_subcommand_from inspect logs exec attach port-forward stop pause resume kill rm wait stats events get describe delete restart top' -f
complete -c magikvm -a '(__magikvm_names)'
# The value of an option is completed by the option's own line.
complete -c magikvm -n '__fish_seen_subcommand_from logs exec attach cp' -s c -l container -x -a '(__magikvm_names)'
