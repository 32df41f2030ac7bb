//! Completion of the names of pods, containers, images and volumes. The scripts of bash, zsh and fish call the hidden verb `__complete` with the words
//! of the command line; verbs and options are completed by the scripts themselves.
//!
//! Only names of harmless characters are printed, one a line, so that no shell can take a name for anything else. Errors print nothing.

use super::{Args as Magikvm, ps, ui};
use crate::image::{ImageStore, Reference};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::layout::{Layout, Surroundings};
use crate::store::lock::LockState;
use crate::store::record::Found;
use crate::volume::claims::Claims;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use magikvm_proto::id::PodId;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The words after the program's name, the last one being completed
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    words: Vec<String>,
}

/// What a word is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    /// A pod that no other word names; with `running` only one that runs.
    Pod {
        running: bool,
        named: Vec<String>,
    },
    /// A container of this pod, or of any pod while none is named.
    Container {
        pod: Option<String>,
    },
    Image,
    Volume,
    /// One of these.
    Word(&'static [&'static str]),
}

/// The completion script of a shell.
pub(super) fn script(shell: Shell) -> String {
    let mut bytes = Vec::new();
    let command = &mut super::parse::without_environment_values(Magikvm::command());
    clap_complete::generate(shell, command, "magikvm", &mut bytes);
    let fixed = String::from_utf8_lossy(&bytes).into_owned();
    match shell {
        Shell::Bash => fixed + include_str!("complete.bash"),
        Shell::Zsh => {
            // The script ends with the registration of its function, in whose place ours comes.
            let end = fixed.rfind("if [ \"$funcstack[1]\"").unwrap_or(fixed.len());
            fixed[..end].to_owned() + include_str!("complete.zsh")
        }
        Shell::Fish => fixed + include_str!("complete.fish"),
        _ => fixed,
    }
}

pub(super) fn main(args: &Args, root: Option<PathBuf>) -> ExitCode {
    let Some((word, before)) = args.words.split_last() else { return ExitCode::SUCCESS };
    let Some((wanted, given_root)) = wanted(before, word) else { return ExitCode::SUCCESS };
    let around = Surroundings::of_process(given_root.or(root));
    let Ok(layout) = Layout::new(&around) else { return ExitCode::SUCCESS };
    let mut names = names(&wanted, word, &PodRuntimeInterface::new(layout));
    names.retain(|name| name.starts_with(word.as_str()) && is_harmless(name));
    let text: String = names.into_iter().map(|name| name + "\n").collect();
    ui::bytes(text.as_bytes());
    ExitCode::SUCCESS
}

/// What the word after these words is, and the value of `--root` among them. `None` if it is not a name.
fn wanted(before: &[String], word: &str) -> Option<(Wanted, Option<PathBuf>)> {
    if word.starts_with('-') {
        return None;
    }
    let tree = Magikvm::command();
    let mut command = &tree;
    let (mut path, mut positional, mut root, mut value_of) = (Vec::new(), Vec::new(), None, None);
    for text in before {
        if let Some(option) = value_of.take() {
            if option == "root" {
                root = Some(PathBuf::from(text));
            }
        } else if text == "--" {
            return None;
        } else if text.starts_with('-') {
            if let Some(dir) = text.strip_prefix("--root=") {
                root = Some(PathBuf::from(dir));
            }
            value_of = option_with_value(&tree, command, text);
        } else if let Some(verb) = command.find_subcommand(text).filter(|_| positional.is_empty()) {
            path.push(text.as_str());
            command = verb;
        } else {
            positional.push(text.clone());
        }
    }
    let first = positional.first().cloned();
    let none_yet = positional.is_empty();
    let wanted = match (path.as_slice(), value_of.as_deref()) {
        (["exec" | "attach" | "logs" | "kill" | "cp"], Some("container")) => Wanted::Container { pod: first },
        (_, Some(_)) => return None,
        (["inspect" | "events"], None) if none_yet => Wanted::Pod { running: false, named: positional },
        (["exec" | "attach" | "port-forward" | "kill" | "stats"], None) if none_yet => {
            Wanted::Pod { running: true, named: positional }
        }
        (["stop" | "pause" | "resume"], None) => Wanted::Pod { running: true, named: positional },
        (["rm" | "wait" | "logs" | "delete" | "describe" | "restart"], None) => {
            Wanted::Pod { running: false, named: positional }
        }
        (["top"], None) => Wanted::Pod { running: true, named: positional },
        // The first word says what is listed.
        (["get"], None) => match positional.first().map(String::as_str) {
            Some("pods" | "pod" | "po" | "events" | "event" | "ev") => {
                Wanted::Pod { running: false, named: positional }
            }
            Some("images" | "image") => Wanted::Image,
            Some("volumes" | "volume" | "pvc") => Wanted::Volume,
            Some(_) => return None,
            None => Wanted::Word(&["pods", "events", "volumes", "images"]),
        },
        (["image", "rm" | "inspect" | "verify" | "pull"], None) => Wanted::Image,
        (["image", "tag" | "export"], None) if none_yet => Wanted::Image,
        (["volume", "rm" | "inspect"], None) => Wanted::Volume,
        (["volume", "export"], None) if none_yet => Wanted::Volume,
        _ => return None,
    };
    Some((wanted, root))
}

/// The name of the option whose value is the next word, if this word is such an option.
fn option_with_value(tree: &Command, command: &Command, text: &str) -> Option<String> {
    let is_meant = |arg: &&clap::Arg| {
        let long = arg.get_long().is_some_and(|long| text.strip_prefix("--") == Some(long));
        // In `-it` or `-ic` only the last letter can have a value in the next word.
        let letter =
            text.strip_prefix('-').filter(|rest| !rest.starts_with('-')).and_then(|rest| rest.chars().last());
        long || (letter.is_some() && arg.get_short() == letter)
    };
    let arg = command.get_arguments().chain(tree.get_arguments()).find(is_meant)?;
    arg.get_action().takes_values().then(|| arg.get_id().to_string())
}

fn names(wanted: &Wanted, word: &str, pods: &PodRuntimeInterface) -> Vec<String> {
    let list = || pods.list().unwrap_or_default();
    match wanted {
        Wanted::Pod { running, named } => {
            let shown = |found: &Found| {
                let id = ps::id(found).filter(|_| !running || found.lock == LockState::Held)?;
                let (short, full) = (short(&id), id.to_string());
                // Whoever begins with the namespace gets names with it.
                let name = if word.contains('/') { full.clone() } else { short.clone() };
                (!named.contains(&short) && !named.contains(&full)).then_some(name)
            };
            list().iter().filter_map(shown).collect()
        }
        Wanted::Container { pod } => {
            let id: Option<PodId> = pod.as_ref().and_then(|pod| pod.parse().ok());
            let records = list().into_iter().filter_map(|found| found.record);
            let mut names: Vec<String> = records
                .filter(|record| id.as_ref().is_none_or(|id| record.id == *id))
                .flat_map(|record| record.containers.into_iter().map(|container| container.name.to_string()))
                .collect();
            names.sort_unstable();
            names.dedup();
            names
        }
        Wanted::Word(words) => words.iter().map(|&word| word.to_owned()).collect(),
        Wanted::Image => {
            let dir = pods.layout().images();
            // Completion must not make the store of a user who has none.
            let store = dir.is_dir().then(|| ImageStore::open(&dir).ok()).flatten();
            let records = store.and_then(|store| store.list().ok()).unwrap_or_default();
            let mut names: Vec<String> =
                records.iter().flat_map(|record| record.names.iter().map(Reference::familiar)).collect();
            names.sort_unstable();
            names
        }
        Wanted::Volume => {
            let dir = pods.layout().volumes();
            let found = Claims::at(&dir).list().map(|(found, _)| found).unwrap_or_default();
            found.iter().map(|claim| short(&claim.record.id)).collect()
        }
    }
}

/// The name that a user types: without the namespace `default`.
fn short(id: &PodId) -> String {
    if id.namespace.as_str() == "default" { id.name.to_string() } else { id.to_string() }
}

fn is_harmless(name: &str) -> bool {
    !name.starts_with('-')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._/:@+-".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(line: &str) -> Option<Wanted> {
        let mut words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let word = words.pop().unwrap();
        wanted(&words, &word).map(|(wanted, _)| wanted)
    }

    #[test]
    fn each_word_is_known_by_its_place() {
        let pod = |running, named: &[&str]| {
            Some(Wanted::Pod { running, named: named.iter().map(|&name| name.to_owned()).collect() })
        };
        let container = |pod: Option<&str>| Some(Wanted::Container { pod: pod.map(str::to_owned) });
        assert_eq!(of("stop "), pod(true, &[]));
        assert_eq!(of("stop a b"), pod(true, &["a"]));
        assert_eq!(of("rm -f a "), pod(false, &["a"]));
        assert_eq!(of("logs --tail 5 "), pod(false, &[]));
        assert_eq!(of("logs --tail "), None);
        assert_eq!(of("logs a "), pod(false, &["a"]));
        assert_eq!(of("inspect a "), None);
        assert_eq!(of("delete a "), pod(false, &["a"]));
        assert_eq!(of("get "), Some(Wanted::Word(&["pods", "events", "volumes", "images"])));
        assert_eq!(of("get images "), Some(Wanted::Image));
        assert_eq!(of("get -n team pods "), pod(false, &["pods"]));
        assert_eq!(of("get -n "), None);
        assert_eq!(of("exec -it "), pod(true, &[]));
        assert_eq!(of("exec -c "), container(None));
        assert_eq!(of("exec shop -c "), container(Some("shop")));
        assert_eq!(of("exec shop --container w"), container(Some("shop")));
        assert_eq!(of("exec shop -- "), None);
        assert_eq!(of("image rm "), Some(Wanted::Image));
        assert_eq!(of("image tag a "), None);
        assert_eq!(of("volume rm a "), Some(Wanted::Volume));
        assert_eq!(of("volume import "), None);
        assert_eq!(of("run "), None);
        assert_eq!(of("stop -"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn the_root_of_the_line_counts() {
        for line in ["--root /r stop", "stop --root /r", "--root=/r stop"] {
            let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
            assert_eq!(wanted(&words, "").unwrap().1, Some(PathBuf::from("/r")), "{line}");
        }
    }

    #[test]
    fn names_that_a_shell_could_take_for_something_else_are_left_out() {
        for name in ["shop", "ns/shop", "reg.example:5000/a/b:1.0", "a@sha256:00"] {
            assert!(is_harmless(name), "{name}");
        }
        for name in ["-f", "$(id)", "a b", "a;b", "`id`", "a\nb", "a'b", "\u{202e}a", "*"] {
            assert!(!is_harmless(name), "{name}");
        }
    }

    #[test]
    fn every_script_asks_for_names() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            assert!(script(shell).contains("__complete --"), "{shell}");
        }
        assert_eq!(script(Shell::Zsh).matches("compdef _magikvm ").count(), 0);
    }
}
