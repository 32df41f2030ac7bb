//! Values of variables from files that containers have written: files of `NAME='VALUE'` lines, as in a POSIX shell, whose values are all in
//! single quotes. Runs in forked copies of the spawner.

use crate::rootfs;
use libcontainer::oci_spec::runtime::Process;
use magikvm_proto::site::Site;
use magikvm_proto::variable::{FileVariable, MAX_ENV_FILE, Missing};
use std::io;
use std::path::Path;

/// Longest argument or variable that Linux takes, without its NUL.
const MAX_TEXT: usize = (128 << 10) - 1;
/// Most bytes of all arguments and variables.
const MAX_ALL: usize = 2 << 20;

/// Why a variable has no value.
#[derive(Debug, thiserror::Error)]
#[error("variable {name}: the file {path:?} of its volume {problem}")]
pub(crate) struct EnvFileError {
    name: String,
    path: String,
    problem: Problem,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Problem {
    #[error("does not exist")]
    NoFile,
    #[error("has no variable {0:?}")]
    NoKey(String),
    #[error("cannot be read: {0}")]
    Read(String),
    #[error("is not UTF-8 text without NUL bytes")]
    NotText,
    #[error("is wrong in line {line}: {what}")]
    Line { line: usize, what: &'static str },
    #[error("makes an argument or variable, or all of them, too long")]
    TooLong,
}

/// Puts the values of a container's variables into its configuration.
pub(crate) fn fill(
    process: &mut Process,
    site: &Site,
    variables: &[FileVariable],
) -> Result<(), EnvFileError> {
    for variable in variables {
        let failed =
            |problem| EnvFileError { name: variable.name.clone(), path: variable.path.clone(), problem };
        let found = read(site, variable).map_err(failed)?;
        let value = match (found, &variable.missing) {
            (Ok(value), _) => Some(value),
            (Err(problem), Missing::Fails) => return Err(failed(problem)),
            (Err(_), Missing::Instead(value)) => value.clone(),
        };
        replace(process, variable, value.as_deref()).map_err(failed)?;
    }
    Ok(())
}

/// The value of a variable, or what is missing.
fn read(site: &Site, variable: &FileVariable) -> Result<Result<String, Problem>, Problem> {
    let unreadable = |error: io::Error| Problem::Read(error.to_string());
    let root = rootfs::open_root(&site.volume(variable.volume)).map_err(unreadable)?;
    let bytes = rootfs::read_file(&root, Path::new(&variable.path), MAX_ENV_FILE).map_err(unreadable)?;
    let Some(bytes) = bytes else { return Ok(Err(Problem::NoFile)) };
    let text = String::from_utf8(bytes).ok().filter(|text| !text.contains('\0')).ok_or(Problem::NotText)?;
    let value = value(&text, &variable.key)?;
    Ok(value.map(str::to_owned).ok_or_else(|| Problem::NoKey(variable.key.clone())))
}

/// The first value of a key. As in Kubernetes, what is behind it is not looked at.
fn value<'a>(text: &'a str, key: &str) -> Result<Option<&'a str>, Problem> {
    let mut rest = text;
    let mut line = 1;
    let blank = [' ', '\t'];
    while !rest.is_empty() {
        let wrong = |what| Err(Problem::Line { line, what });
        let (this, next) = rest.split_once('\n').unwrap_or((rest, ""));
        let trimmed = this.trim_end_matches('\r').trim_start_matches(blank);
        if trimmed.is_empty() || trimmed.starts_with('#') {
            (rest, line) = (next, line + 1);
            continue;
        }
        let Some((name, assigned)) = trimmed.split_once('=') else { return wrong("it has no `=`") };
        if name.is_empty() || name.ends_with(blank) {
            return wrong("there must be a name right before the `=`");
        }
        if assigned.starts_with(blank) {
            // As in a shell, the value is empty.
            if name == key {
                return Ok(Some(""));
            }
            (rest, line) = (next, line + 1);
            continue;
        }
        if !assigned.starts_with('\'') {
            return wrong("the value must be in single quotes");
        }
        // The value may go on in the next lines.
        let quote = rest.find("='").map_or(rest.len(), |at| at + 2);
        let Some((value, behind)) = rest[quote..].split_once('\'') else {
            return wrong("its quote is not closed");
        };
        let (end, next) = behind.split_once('\n').unwrap_or((behind, ""));
        let end = end.trim_end_matches('\r').trim_start_matches(blank);
        line += value.matches('\n').count();
        if !end.is_empty() && !end.starts_with('#') {
            return Err(Problem::Line { line, what: "only a comment may be behind the value" });
        }
        if name == key {
            return Ok(Some(value));
        }
        (rest, line) = (next, line + 1);
    }
    Ok(None)
}

/// Puts a value into the arguments and variables. Without one the variable is removed, and references to it stay references.
fn replace(process: &mut Process, variable: &FileVariable, value: Option<&str>) -> Result<(), Problem> {
    let FileVariable { name, placeholder, .. } = variable;
    let env = process.env_mut().get_or_insert_default();
    if value.is_none() {
        let own = format!("{name}={placeholder}");
        env.retain(|entry| *entry != own);
    }
    let reference = format!("$({name})");
    let value = value.unwrap_or(&reference);
    let mut all = 0_usize;
    let mut fill = |texts: &mut Vec<String>| {
        for text in texts.iter_mut() {
            let count = text.matches(placeholder.as_str()).count();
            let length = text.len() - count * placeholder.len() + count * value.len();
            all += length;
            if length > MAX_TEXT || all > MAX_ALL {
                return Err(Problem::TooLong);
            }
            if count > 0 {
                *text = text.replace(placeholder.as_str(), value);
            }
        }
        Ok(())
    };
    fill(env)?;
    let mut args = process.args().clone().unwrap_or_default();
    fill(&mut args)?;
    process.set_args(Some(args));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_read_as_kubernetes_does() {
        let text = "# comment\n\n  A='one' # why\r\nB='two\nlines'\nC= 'x'\nD=''\nE='a=b \"$X\" \\n'\nA='again'\nlast='end'";
        for (key, expected) in [
            ("A", Some("one")),
            ("B", Some("two\nlines")),
            ("C", Some("")),
            ("D", Some("")),
            ("E", Some("a=b \"$X\" \\n")),
            ("last", Some("end")),
            ("a", None),
        ] {
            assert_eq!(value(text, key), Ok(expected), "{key}");
        }
        for (text, line) in
            [("A", 1), ("\nA=b", 2), ("A ='b'", 1), ("='b'", 1), ("A='b\n\n'c", 3), ("X='y'\nA='b", 2)]
        {
            assert!(
                matches!(value(text, "A"), Err(Problem::Line { line: found, .. }) if found == line),
                "{text:?}"
            );
        }
        // What is behind the value does not matter.
        assert_eq!(value("A='b'\nnonsense", "A"), Ok(Some("b")));
    }

    fn variable(missing: Missing) -> FileVariable {
        FileVariable {
            name: "A".to_owned(),
            placeholder: "<1>".to_owned(),
            volume: 0,
            path: "dir/env".to_owned(),
            key: "KEY".to_owned(),
            missing,
        }
    }

    fn process() -> Process {
        let mut process = Process::default();
        let texts = |all: &[&str]| Some(all.iter().map(|&text| text.to_owned()).collect());
        process.set_args(texts(&["echo", "<1>-<1>"])).set_env(texts(&["P=q", "A=<1>", "B=is <1>"]));
        process
    }

    #[test]
    fn values_come_into_variables_and_arguments() {
        let mut filled = process();
        replace(&mut filled, &variable(Missing::Fails), Some("v")).unwrap();
        assert_eq!(filled.args().as_ref().unwrap(), &["echo", "v-v"]);
        assert_eq!(filled.env().as_ref().unwrap(), &["P=q", "A=v", "B=is v"]);
        let mut without = process();
        replace(&mut without, &variable(Missing::Instead(None)), None).unwrap();
        assert_eq!(without.args().as_ref().unwrap(), &["echo", "$(A)-$(A)"]);
        assert_eq!(without.env().as_ref().unwrap(), &["P=q", "B=is $(A)"]);
        let long = "x".repeat(MAX_TEXT);
        assert_eq!(replace(&mut process(), &variable(Missing::Fails), Some(&long)), Err(Problem::TooLong));
    }

    #[test]
    fn files_are_read_beneath_their_volume_only() {
        let dir = tempfile::tempdir().unwrap();
        let site = Site::beneath(dir.path(), "/pod");
        let volume = site.volume(0);
        std::fs::create_dir_all(volume.join("dir")).unwrap();
        let outcome = |missing: Missing| {
            let mut process = process();
            fill(&mut process, &site, &[variable(missing)])
                .map(|()| process.env().clone().unwrap()[1].clone())
        };
        let error = || outcome(Missing::Fails).unwrap_err().to_string();
        assert_eq!(error(), "variable A: the file \"dir/env\" of its volume does not exist");
        assert_eq!(outcome(Missing::Instead(Some("image's".to_owned()))).unwrap(), "A=image's");
        std::fs::write(volume.join("dir/env"), "OTHER='x'\n").unwrap();
        assert_eq!(error(), "variable A: the file \"dir/env\" of its volume has no variable \"KEY\"");
        std::fs::write(volume.join("dir/env"), "KEY='x'\n").unwrap();
        assert_eq!(outcome(Missing::Fails).unwrap(), "A=x");
        // A file that cannot be read is an error even if it may be missing.
        std::fs::write(volume.join("dir/env"), "KEY=x\n").unwrap();
        assert!(outcome(Missing::Instead(None)).unwrap_err().to_string().contains("in single quotes"));
        std::fs::write(volume.join("dir/env"), vec![b' '; 1 + usize::try_from(MAX_ENV_FILE).unwrap()])
            .unwrap();
        assert!(error().contains("cannot be read: over 65536 bytes"));
        std::fs::remove_file(volume.join("dir/env")).unwrap();
        std::fs::write(dir.path().join("outside"), "KEY='secret'\n").unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), volume.join("dir/env")).unwrap();
        assert!(error().contains("does not exist"));
        std::fs::remove_file(volume.join("dir/env")).unwrap();
        nix::unistd::mkfifo(&volume.join("dir/env"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(error().contains("not a regular file"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "([A-B#=' \t\r\n]|ä){0,60}") {
            if let Ok(Some(found)) = value(&text, "A") {
                prop_assert!(text.contains(found));
            }
        }
    }
}
