//! Reads the command line, and says clearly what is wrong with it.

use super::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::process::ExitCode;

/// Words of kubectl, podman and docker, and the verbs that do the same here.
static SYNONYMS: [(&str, &str); 21] = [
    ("cat", "inspect"),
    ("containers", "ps"),
    ("continue", "resume"),
    ("copy", "cp"),
    ("create", "run"),
    ("forward", "port-forward"),
    ("images", "image ls"),
    ("import", "image import"),
    ("info", "doctor"),
    ("list", "ps"),
    ("load", "image import"),
    ("log", "logs"),
    ("play", "run"),
    ("pods", "ps"),
    ("pull", "image pull"),
    ("remove", "rm"),
    ("rmi", "image rm"),
    ("shell", "exec"),
    ("show", "describe"),
    ("start", "restart"),
    ("unpause", "resume"),
];

/// Options of other tools for some verbs, and what does the same here.
static HABITS: [(&[&str], &[&str], &str); 9] = [
    (&["run", "apply"], &["--dry-run"], "`magikvm validate FILE` checks manifests without running them"),
    (
        &["run"],
        &["--image", "--name"],
        "pods come from manifests only: write one, and use `magikvm run FILE`",
    ),
    (
        &["run", "apply", "down"],
        &["-n", "--namespace"],
        "a manifest names its namespace, with metadata.namespace",
    ),
    (&["logs"], &["--all-containers"], "all containers are shown, unless `-c` names one"),
    (&["ps"], &["-a", "--all"], "`magikvm ps` lists pods that have ended, too"),
    (
        &["ps", "get"],
        &["--show-labels"],
        "use `-o custom-columns=NAME:.metadata.name,LABELS:.metadata.labels`",
    ),
    (&["get"], &["--for"], "name the pods, as in `magikvm get events POD`"),
    (&["stop", "restart"], &["-t", "--time", "--timeout"], "the time between TERM and KILL is `--grace`"),
    (&["ps", "get", "inspect"], &["--format"], "use `-o json`, `-o jsonpath=…` or `-o custom-columns=…`"),
];

/// The verbs as `--help` shows them.
static GROUPS: [(&str, &[&str]); 5] = [
    (
        "Run and remove pods",
        &["run", "apply", "restart", "stop", "rm", "delete", "down", "validate", "explain"],
    ),
    ("Look at pods", &["ps", "get", "describe", "inspect", "logs", "events", "stats", "top", "wait"]),
    ("Work with running pods", &["exec", "attach", "cp", "port-forward", "pause", "resume", "kill"]),
    ("Images and volumes", &["image", "volume"]),
    ("This program", &["doctor", "version", "completions", "help"]),
];

/// Lets `--help` show the verbs in groups, each with its first sentence.
fn grouped(mut command: Command) -> Command {
    command.build();
    let verbs = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter());
    let width = verbs.map(|verb| verb.len()).max().unwrap_or(0);
    let about = |verb: &str| {
        let found = command.find_subcommand(verb).and_then(Command::get_about);
        found.map(ToString::to_string).unwrap_or_default()
    };
    let mut text = String::new();
    for (head, verbs) in &GROUPS {
        let lines = verbs.iter().map(|verb| format!("  {verb:width$}  {}\n", about(verb)));
        text.push_str(&format!("{head}:\n{}\n", lines.collect::<String>()));
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{text}{{all-args}}{{after-help}}");
    let usage = "magikvm [OPTIONS] <COMMAND>";
    command.mut_subcommands(|verb| verb.hide(true)).override_usage(usage).help_template(template)
}

/// The arguments, or the exit code after an error, `--help` or `--version` was printed.
pub(super) fn arguments(words: &[OsString]) -> Result<Args, ExitCode> {
    let parse = |command: Command| -> Result<Args, clap::Error> {
        let matches = command.try_get_matches_from(words)?;
        let mut args = Args::from_arg_matches(&matches)?;
        args.note_origins(&matches);
        Ok(args)
    };
    parse(grouped(Args::command())).map_err(|error| {
        // In its usage lines clap shows options that the environment sets as if they had been given. An error that remains without
        // the environment is shown without it.
        // Help, which is no error, is to show the environment.
        let plain =
            error.use_stderr().then(|| parse(grouped(without_environment(Args::command()))).err()).flatten();
        let mut error = plain.filter(|plain| plain.kind() == error.kind()).unwrap_or(error);
        suggest(&mut error);
        suggest_option(&mut error, words);
        // Help is no error. If it cannot be printed, nothing else can be.
        let code = u8::try_from(error.exit_code()).unwrap_or(2);
        if error.print().is_err() {
            return ExitCode::from(code.max(1));
        }
        ExitCode::from(code)
    })
}

fn without_environment(command: Command) -> Command {
    command.mut_args(|arg| arg.env(None::<&'static str>)).mut_subcommands(without_environment)
}

/// Without the present values of variables, for texts that are kept. The names of the variables stay.
pub(super) fn without_environment_values(command: Command) -> Command {
    command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(without_environment_values)
}

/// Adds the verb that was probably meant to the error of an unknown verb. A word of another tool says more than clap's similar verb.
fn suggest(error: &mut clap::Error) {
    if error.kind() != ErrorKind::InvalidSubcommand {
        return;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return };
    let found = SYNONYMS.iter().find(|(other, _)| *other == word.as_str());
    if let Some((_, verb)) = found {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![(*verb).to_owned()]));
    }
}

/// Says what an option of another tool is here, instead of clap's similar option or its advice to take it for a value.
fn suggest_option(error: &mut clap::Error, words: &[OsString]) {
    if error.kind() != ErrorKind::UnknownArgument {
        return;
    }
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else { return };
    let option = option.split('=').next().unwrap_or_default();
    let fits =
        |verbs: &[&str]| verbs.is_empty() || words.iter().any(|word| verbs.iter().any(|verb| word == verb));
    let found = HABITS.iter().find(|(verbs, options, _)| options.contains(&option) && fits(verbs));
    if let Some((_, _, hint)) = found {
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![(*hint).into()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_verb_is_in_one_group() {
        let mut command = Args::command();
        command.build();
        let shown = command.get_subcommands().filter(|verb| !verb.is_hide_set());
        let mut verbs: Vec<&str> = shown.map(Command::get_name).collect();
        let mut grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, verbs)| verbs.iter().copied()).collect();
        verbs.sort_unstable();
        grouped.sort_unstable();
        assert_eq!(verbs, grouped);
    }

    fn refused(line: &str) -> clap::Error {
        let mut error = Args::command().try_get_matches_from(line.split(' ')).unwrap_err();
        suggest(&mut error);
        error
    }

    #[test]
    fn words_of_other_tools_lead_to_verbs_that_exist() {
        let command = Args::command();
        for (word, verb) in SYNONYMS {
            let found = verb.split(' ').try_fold(&command, |command, name| command.find_subcommand(name));
            assert!(found.is_some(), "{verb}");
            let text = refused(&format!("magikvm {word}")).to_string();
            assert!(text.contains("similar subcommand"), "{word}: {text}");
        }
        assert!(refused("magikvm list").to_string().contains("'ps'"));
        assert!(refused("magikvm stpo").to_string().contains("'stop'"), "clap's own suggestion stays");
    }

    #[test]
    fn options_of_other_tools_lead_to_what_does_the_same() {
        let refused = |line: &str| {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let mut error = Args::command().try_get_matches_from(&words).unwrap_err();
            suggest_option(&mut error, &words);
            error.to_string()
        };
        for (line, hint) in [
            ("magikvm apply --dry-run=client -f a", "magikvm validate"),
            ("magikvm run -n team a", "metadata.namespace"),
            ("magikvm logs --all-containers a", "unless `-c` names one"),
            ("magikvm ps --all", "have ended, too"),
            ("magikvm stop -t 1 a", "`--grace`"),
        ] {
            let text = refused(line);
            assert!(text.contains(hint) && text.matches("tip:").count() == 1, "{line}: {text}");
        }
        assert!(refused("magikvm ps --noheaders").contains("--no-headers"), "clap's own suggestion stays");
    }

    #[test]
    fn negative_lengths_of_time_are_refused_as_such() {
        for line in
            ["magikvm stop --grace -5 a", "magikvm stop --grace -5s a", "magikvm run --pull-timeout -1 a"]
        {
            let text = refused(line).to_string();
            assert!(text.contains("is not between") && !text.contains("tip:"), "{text}");
        }
    }
}
