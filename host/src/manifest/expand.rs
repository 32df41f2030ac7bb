//! Kubernetes' `$(VAR)` (`k8s.io/kubernetes/third_party/forked/golang/expansion`): a reference to a known variable becomes its value, a
//! reference to an unknown variable stays unchanged, and `$$` is a `$` that begins no reference.

use std::collections::HashMap;

/// Longest result, in bytes: Linux accepts no longer argument or variable (`MAX_ARG_STRLEN`, including its terminating NUL).
pub const MAX_EXPANDED_LEN: usize = (128 << 10) - 1;

/// A result beyond [`MAX_EXPANDED_LEN`]. References can double a value at every step, so this is detected before the result is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is longer than {MAX_EXPANDED_LEN} bytes after its $(VAR) references are expanded")]
pub struct TooLong;

/// Expands the references of `text` to variables in `known`.
pub fn expand(text: &str, known: &HashMap<String, String>) -> Result<String, TooLong> {
    let mut result = String::new();
    let mut rest = text;
    // Once no `)` is left, there is no need to search again, so the time stays linear.
    let mut closers = true;
    while let Some(start) = rest.find('$') {
        push(&mut result, &rest[..start])?;
        let after = &rest[start + 1..];
        if let Some(escaped) = after.strip_prefix('$') {
            push(&mut result, "$")?;
            rest = escaped;
            continue;
        }
        let inside = after.strip_prefix('(');
        let reference = inside.filter(|_| closers).and_then(|inside| inside.split_once(')'));
        if let Some((name, behind)) = reference {
            match known.get(name) {
                Some(value) => push(&mut result, value)?,
                None => push(&mut result, &rest[start..rest.len() - behind.len()])?,
            }
            rest = behind;
        } else {
            // Not a reference: `$` and what follows it stand for themselves, even the `(` of an unclosed one.
            closers &= inside.is_none();
            push(&mut result, if inside.is_some() { "$(" } else { "$" })?;
            rest = inside.unwrap_or(after);
        }
    }
    push(&mut result, rest)?;
    Ok(result)
}

fn push(result: &mut String, piece: &str) -> Result<(), TooLong> {
    if result.len() + piece.len() > MAX_EXPANDED_LEN {
        return Err(TooLong);
    }
    result.push_str(piece);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn known() -> HashMap<String, String> {
        [("VAR_A", "A"), ("VAR_B", "B"), ("VAR_C", "C"), ("VAR_REF", "$(VAR_A)"), ("VAR_EMPTY", "")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into()
    }

    /// The table of Kubernetes' `expansion_test.go`.
    #[test]
    fn expands_as_kubernetes_does() {
        let table = [
            ("$(VAR_A)", "A"),
            ("___$(VAR_B)___", "___B___"),
            ("$(VAR_REF)", "$(VAR_A)"),
            ("foo-$(VAR_A)-bar", "foo-A-bar"),
            ("$(VAR_DNE)", "$(VAR_DNE)"),
            ("$(VAR_A)$(VAR_B)$(VAR_C)", "ABC"),
            ("$$(VAR_A)_$(VAR_B)$(VAR_C)", "$(VAR_A)_BC"),
            ("$(VAR_EMPTY)", ""),
            ("f000-$$VAR_A", "f000-$VAR_A"),
            ("foo\\$(VAR_C)bar", "foo\\Cbar"),
            ("foo\\\\$(VAR_C)bar", "foo\\\\Cbar"),
            ("foo\\\\\\\\$(VAR_A)bar", "foo\\\\\\\\Abar"),
            ("$(VAR_A$(VAR_B)", "$(VAR_A$(VAR_B)"),
            ("$(VAR_A$(VAR_B)$(VAR_C", "$(VAR_A$(VAR_B)$(VAR_C"),
            ("$(VAR_A", "$(VAR_A"),
            ("$$$$$$(BIG_MONEY)", "$$$(BIG_MONEY)"),
            ("$$$$$$(VAR_A)", "$$$(VAR_A)"),
            ("$$$$$$$(GOOD_ODDS)", "$$$$(GOOD_ODDS)"),
            ("$$$$$$$(VAR_A)", "$$$A"),
            ("$VAR_A)", "$VAR_A)"),
            ("${VAR_A}", "${VAR_A}"),
            ("$(VAR_B)_______$(A", "B_______$(A"),
            ("$(VAR_C)_______$(", "C_______$("),
            ("$(VAR_A)foobarzab$", "Afoobarzab$"),
            ("foo-\\$(VAR_A", "foo-\\$(VAR_A"),
            ("--$($($($($--", "--$($($($($--"),
            ("$($($($($--foo$(", "$($($($($--foo$("),
            ("foo0--$($($($(", "foo0--$($($($("),
            ("$(foo$$var)", "$(foo$$var)"),
            ("$", "$"),
            ("$$", "$"),
            ("$()", "$()"),
            ("$)", "$)"),
            ("ä$(VAR_A)ö$ü", "äAö$ü"),
        ];
        for (text, expanded) in table {
            assert_eq!(expand(text, &known()).as_deref(), Ok(expanded), "{text}");
        }
    }

    #[test]
    fn a_result_longer_than_linux_takes_is_refused() {
        let big: HashMap<_, _> = [("X".to_owned(), "x".repeat(MAX_EXPANDED_LEN))].into();
        assert_eq!(expand("$(X)", &big).map(|text| text.len()), Ok(MAX_EXPANDED_LEN));
        assert_eq!(expand("$(X)$(X)", &big), Err(TooLong));
    }

    proptest! {
        #[test]
        fn text_without_a_dollar_is_itself_and_no_text_makes_it_panic(text in r"[$()A-C_ä ]{0,60}", plain in "[^$]{0,40}") {
            drop(expand(&text, &known()));
            prop_assert_eq!(expand(&plain, &known()).unwrap(), plain);
        }

        #[test]
        fn doubling_every_dollar_keeps_the_text(text in r"[$()VAR_A]{0,60}") {
            prop_assert_eq!(expand(&text.replace('$', "$$"), &known()).unwrap(), text);
        }
    }
}
