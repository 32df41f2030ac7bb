//! Names of Pods that have only a `generateName`.

use super::node::{Entry, Node, Style, Value};
use super::scalar;
use super::walk::{get, text};

/// The letters and digits that API servers choose from: no vowels, so that no words come about, and nothing that looks alike.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// Number of characters after the beginning of the name.
const RANDOM_LEN: usize = 5;
/// Longest beginning that is kept, as in Kubernetes.
const MAX_PREFIX_LEN: usize = 63 - RANDOM_LEN;

/// The name that this beginning and these random bytes make. `None` if there are not enough usable bytes.
pub(super) fn name(prefix: &str, random: impl Iterator<Item = u8>) -> Option<String> {
    let cut = (0..=MAX_PREFIX_LEN.min(prefix.len())).rev().find(|&end| prefix.is_char_boundary(end))?;
    // Bytes above the last multiple would favour the first characters.
    let bound = 256 - 256 % ALPHABET.len();
    let mut name = prefix[..cut].to_owned();
    let usable = random.map(usize::from).filter(|&byte| byte < bound);
    name.extend(usable.take(RANDOM_LEN).map(|byte| char::from(ALPHABET[byte % ALPHABET.len()])));
    (name.len() == cut + RANDOM_LEN).then_some(name)
}

/// The beginning of the name that a Pod wants, if it has no name itself.
pub(super) fn wanted(pod: &Node) -> Option<&str> {
    let Value::Map(entries) = &pod.value else { return None };
    let Value::Map(metadata) = &get(entries, "metadata")?.value else { return None };
    let has_name = get(metadata, "name").is_some_and(|name| !scalar::is_null(name) && text(name) != Some(""));
    let prefix = get(metadata, "generateName").filter(|node| !scalar::is_null(node)).and_then(text)?;
    (!has_name && !prefix.is_empty()).then_some(prefix)
}

/// Gives a Pod this name instead of its `generateName`.
pub(super) fn give(pod: &mut Node, name: String) {
    let Value::Map(entries) = &mut pod.value else { return };
    let Some(metadata) = entries.iter_mut().find(|entry| entry.key == "metadata") else { return };
    let Value::Map(fields) = &mut metadata.node.value else { return };
    let Some(generated) = fields.iter().position(|entry| entry.key == "generateName") else { return };
    let Entry { key_mark, node, .. } = fields.remove(generated);
    fields.retain(|entry| entry.key != "name");
    let value = Value::Scalar { text: name, style: Style::Quoted };
    fields.push(Entry { key: "name".to_owned(), key_mark, node: Node { mark: node.mark, value } });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::yaml;
    use proptest::prelude::*;

    #[test]
    fn names_have_five_characters_of_the_alphabet_after_a_short_beginning() {
        assert_eq!(name("web-", [0, 26, 27, 242, 243, 1].into_iter()).as_deref(), Some("web-b9b9c"));
        assert_eq!(name("web-", [0, 255, 255, 255, 255, 1].into_iter()), None);
        let long = name(&"x".repeat(200), [0; 5].into_iter()).unwrap();
        assert_eq!(long, format!("{}bbbbb", "x".repeat(58)));
        assert!(name(&"ä".repeat(40), [0; 5].into_iter()).unwrap().ends_with("äbbbbb"));
    }

    #[test]
    fn only_a_pod_without_a_name_gets_one() {
        let pod = |metadata: &str| yaml::parse(&format!("metadata: {metadata}")).unwrap().remove(0);
        for nameless in ["{generateName: a-}", "{generateName: a-, name: ''}", "{generateName: a-, name: ~}"]
        {
            let mut pod = pod(nameless);
            assert_eq!(wanted(&pod), Some("a-"), "{nameless}");
            give(&mut pod, "a-bbbbb".to_owned());
            assert_eq!(wanted(&pod), None);
            let Value::Map(entries) = &pod.value else { panic!("{pod:?}") };
            let Value::Map(fields) = &entries[0].node.value else { panic!("{pod:?}") };
            assert_eq!(fields.iter().map(|field| field.key.as_str()).collect::<Vec<_>>(), ["name"]);
        }
        for other in
            ["{generateName: a-, name: b}", "{name: b}", "{generateName: ''}", "{generateName: ~}", "x"]
        {
            assert_eq!(wanted(&pod(other)), None, "{other}");
        }
    }

    proptest! {
        #[test]
        fn any_beginning_is_cut_to_what_is_allowed(prefix in ".{0,80}", random in prop::collection::vec(any::<u8>(), 40)) {
            if let Some(name) = name(&prefix, random.into_iter()) {
                prop_assert!(name.len() <= 63, "{name}");
            }
        }
    }
}
