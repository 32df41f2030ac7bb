//! The file that a pod was made from. `down` removes what the files in its input have made, and no pod of the same name that somebody has made from
//! another file.

use super::error::{CliError, Kind};
use crate::manifest::input::{self, Source};
use crate::store::record::Found;

/// The path by which the file of a source is recognized; `None` for what is not a file.
pub(super) fn place(source: &Source) -> Option<String> {
    let path = std::fs::canonicalize(&source.origin).ok().filter(|path| path.is_file())?;
    path.to_str().map(str::to_owned)
}

/// Checks that a pod was made from one of these sources: from the same file, whatever is in it now, or from the same manifest, wherever it is.
pub(super) fn check(found: &Found, sources: &[Source]) -> Result<(), CliError> {
    let name = found.name();
    let refused = |message: String| {
        Err(CliError::new(Kind::User, message)
            .hint(format!("Remove it with `magikvm rm -f {name}` if it is what you mean.")))
    };
    let Some(record) = &found.record else {
        return refused(format!("it is not known which file pod {name} was made from"));
    };
    let made_from = record.source.as_ref();
    if sources.iter().any(|source| made_from.is_some_and(|path| place(source).as_ref() == Some(path))) {
        return Ok(());
    }
    let read = input::read(sources, &mut |_, _| None);
    let plans = read.pods.iter().filter_map(|pod| pod.plan.as_ref());
    if plans.into_iter().any(|plan| plan.id == record.id && plan.manifest == record.manifest) {
        return Ok(());
    }
    refused(match made_from {
        Some(path) => format!("pod {name} was made from {path}, and not from this input"),
        None => format!("pod {name} was made from another manifest than the one in this input"),
    })
}
