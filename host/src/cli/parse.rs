//! Reads the command line, and says clearly what is wrong with it.

use super::Args;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, CommandFactory, FromArgMatches};
use std::ffi::OsString;
use std::process::ExitCode;

/// Words of kubectl, podman and docker, and the verbs that do the same here.
static SYNONYMS: [(&str, &str); 24] = [
    ("apply", "run"),
    ("cat", "inspect"),
    ("containers", "ps"),
    ("continue", "resume"),
    ("create", "run"),
    ("delete", "rm"),
    ("describe", "inspect"),
    ("forward", "port-forward"),
    ("get", "ps"),
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
    ("start", "run"),
    ("top", "stats"),
    ("unpause", "resume"),
];

/// The arguments, or the exit code after an error, `--help` or `--version` was printed.
pub(super) fn arguments(words: &[OsString]) -> Result<Args, ExitCode> {
    let parse = |command: Command| {
        command.try_get_matches_from(words).and_then(|matches| Args::from_arg_matches(&matches))
    };
    parse(Args::command()).map_err(|error| {
        // In its usage lines clap shows options that the environment sets as if they had been given. An error that remains without
        // the environment is shown without it.
        // Help, which is no error, is to show the environment.
        let plain = error.use_stderr().then(|| parse(without_environment(Args::command())).err()).flatten();
        let mut error = plain.filter(|plain| plain.kind() == error.kind()).unwrap_or(error);
        suggest(&mut error);
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

/// Adds the verb that was probably meant to the error of an unknown verb, unless clap has found a similar one.
fn suggest(error: &mut clap::Error) {
    if error.kind() != ErrorKind::InvalidSubcommand || error.get(ContextKind::SuggestedSubcommand).is_some() {
        return;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidSubcommand) else { return };
    let found = SYNONYMS.iter().find(|(other, _)| *other == word.as_str());
    if let Some((_, verb)) = found {
        error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(vec![(*verb).to_owned()]));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn negative_lengths_of_time_are_refused_as_such() {
        for line in
            ["magikvm stop --grace -5 a", "magikvm stop --grace -5s a", "magikvm run --pull-timeout -1 a"]
        {
            let text = refused(line).to_string();
            assert!(text.contains("is not between") && !text.contains("tip:"), "{text}");
        }
    }
}
