//! What a mistyped field or word most likely stands for.

use super::{Status, alias, all};

/// The likely intention behind a key that is not a field of the object at `parent` (empty: the top).
pub fn suggest(parent: &str, key: &str) -> Option<String> {
    let parent = alias::resolved_object(parent);
    let siblings: Vec<&str> = all()
        .filter_map(|field| {
            let (above, name) = field.path.rsplit_once('.').unwrap_or(("", field.path));
            (above == parent).then_some(name)
        })
        .collect();
    let nearest = nearest(key, siblings.iter().copied());
    if let Some(name) = nearest.or_else(|| longer(key, siblings.iter().copied())) {
        return Some(format!("did you mean `{name}`?"));
    }
    let elsewhere: Vec<&str> = all()
        .filter_map(|field| {
            let (above, name) = field.path.rsplit_once('.')?;
            let is_known = matches!(field.status, Status::Supported | Status::Only { .. });
            (name == key && is_known).then_some(above)
        })
        .collect();
    // Of several places, a container is what is forgotten most, and at the top the Pod's specification.
    let places =
        if parent.is_empty() { ["spec", "spec.containers[]"] } else { ["spec.containers[]", "spec"] };
    let meant = match &elsewhere[..] {
        [above] => above,
        several => places.iter().find_map(|place| several.iter().find(|above| *above == place))?,
    };
    Some(format!("`{key}` belongs in `{meant}`"))
}

/// The only word that ends with another one, or with which the other one ends: `secretName` for `name`.
fn longer<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    let mut found = words.filter(|word| {
        let word = word.to_ascii_lowercase();
        word.len() > 2 && lower.len() > 2 && (word.ends_with(&lower) || lower.ends_with(&word))
    });
    found.next().filter(|_| found.next().is_none())
}

/// The word that a mistyped one most likely stands for, whatever its case.
fn nearest<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let lower = text.to_ascii_lowercase();
    words
        .map(|word| (distance(&lower, &word.to_ascii_lowercase()), word))
        .filter(|&(distance, word)| distance <= (word.len() / 3).max(1))
        .min()
        .map(|(_, word)| word)
}

/// The hint for a mistyped word; empty if it is like none of them.
pub(in crate::manifest) fn did_you_mean<'a>(text: &str, words: impl Iterator<Item = &'a str>) -> String {
    nearest(text, words).map(|word| format!("did you mean {word}?")).unwrap_or_default()
}

/// Edit distance (Levenshtein). Texts of very different length count as far apart without comparison.
fn distance(a: &str, b: &str) -> usize {
    if a.len().abs_diff(b.len()) > 8 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, &y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_errors_are_told_what_was_meant() {
        assert_eq!(suggest("spec", "container").as_deref(), Some("did you mean `containers`?"));
        assert_eq!(suggest("spec", "hostName").as_deref(), Some("did you mean `hostname`?"));
        assert_eq!(suggest("spec.containers[]", "cmd"), None);
        assert_eq!(
            suggest("spec.containers[]", "imagePullpolicy").as_deref(),
            Some("did you mean `imagePullPolicy`?")
        );
        assert_eq!(suggest("spec.containers[]", "enviroment"), None);
        assert_eq!(
            suggest("spec.initContainers[].startupProbe", "httpget").as_deref(),
            Some("did you mean `httpGet`?")
        );
        assert_eq!(suggest("", "restartPolicy").as_deref(), Some("`restartPolicy` belongs in `spec`"));
        assert_eq!(suggest("spec", "image").as_deref(), Some("`image` belongs in `spec.containers[]`"));
        assert_eq!(suggest("spec.volumes[].secret", "name").as_deref(), Some("did you mean `secretName`?"));
        assert_eq!(
            suggest("spec.volumes[].persistentVolumeClaim", "name").as_deref(),
            Some("did you mean `claimName`?")
        );
        assert_eq!(
            suggest("spec.containers[]", "hostNetwork").as_deref(),
            Some("`hostNetwork` belongs in `spec`")
        );
        assert_eq!(suggest("", "metdata").as_deref(), Some("did you mean `metadata`?"));
        assert_eq!(suggest("", &"x".repeat(10_000)), None);
    }
}
