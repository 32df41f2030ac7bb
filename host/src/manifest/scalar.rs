//! The type of a scalar without quotes. YAML 1.1 (which Kubernetes' reader follows) and YAML 1.2 disagree about `yes`, `on`, `0755` and
//! more. Such scalars are refused with the advice to write what is meant.

use super::node::{Node, Style, Value};

/// The type of an unquoted scalar for a YAML reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScalarKind {
    Null,
    /// `true` or `false` for every reader.
    Bool(bool),
    /// A boolean for some readers, a string for others: `yes`, `on`…
    MaybeBool(bool),
    /// A decimal whole number for every reader.
    Int(i64),
    /// Another number, or a number for some readers only: `1.5`, `1e3`, `0755`, `0x10`, `1_000`, `.inf`.
    Number,
    /// A string for every reader.
    Text,
}

/// The type of this text when it is written without quotes.
pub(super) fn kind(text: &str) -> ScalarKind {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return ScalarKind::Null,
        "true" | "True" | "TRUE" => return ScalarKind::Bool(true),
        "false" | "False" | "FALSE" => return ScalarKind::Bool(false),
        "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return ScalarKind::MaybeBool(true),
        "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return ScalarKind::MaybeBool(false),
        _ => {}
    }
    if let Some(number) = decimal(text) {
        return ScalarKind::Int(number);
    }
    if is_number(text) { ScalarKind::Number } else { ScalarKind::Text }
}

/// Whether a value is null, which Kubernetes treats like an absent field.
pub(super) fn is_null(node: &Node) -> bool {
    matches!(&node.value, Value::Scalar { text, style: Style::Plain } if kind(text) == ScalarKind::Null)
}

/// A whole number that all readers read in the same way: no leading zero, no `+`, no `_`.
fn decimal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let plain = digits.bytes().all(|byte| byte.is_ascii_digit());
    if !plain || digits.is_empty() || (digits.len() > 1 && digits.starts_with('0')) || text == "-0" {
        return None;
    }
    text.parse().ok()
}

/// Whether some reader takes this for a number: the union of go-yaml, YAML 1.1 and YAML 1.2.
fn is_number(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF" | ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    if !unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') {
        return false;
    }
    let plain = unsigned.replace('_', "");
    for (prefix, base) in [("0x", 16), ("0X", 16), ("0o", 8), ("0O", 8), ("0b", 2), ("0B", 2)] {
        if let Some(digits) = plain.strip_prefix(prefix) {
            return !digits.is_empty() && digits.chars().all(|c| c.is_digit(base));
        }
    }
    is_float(&plain)
}

/// `[0-9]+(\.[0-9]*)?` or `\.[0-9]+`, then maybe an exponent.
fn is_float(text: &str) -> bool {
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (text, None),
    };
    let exponent_fits = exponent.is_none_or(|text| {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        !unsigned.is_empty() && digits(unsigned)
    });
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    exponent_fits && digits(whole) && digits(fraction) && !(whole.is_empty() && fraction.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_is_told_from_the_others() {
        for text in ["", "~", "null", "Null"] {
            assert_eq!(kind(text), ScalarKind::Null, "{text}");
        }
        assert_eq!(kind("true"), ScalarKind::Bool(true));
        assert_eq!(kind("NO"), ScalarKind::MaybeBool(false));
        for (text, number) in [("0", 0), ("8080", 8080), ("-5", -5), ("9223372036854775807", i64::MAX)] {
            assert_eq!(kind(text), ScalarKind::Int(number), "{text}");
        }
        for text in [
            "0755",
            "0o17",
            "0x1F",
            "0b11",
            "1_000",
            "+5",
            "1.5",
            ".5",
            "5.",
            "1e3",
            "1E+3",
            "-1.5e-3",
            ".inf",
            "-.INF",
            ".nan",
            "-0",
            "00",
            "9223372036854775808",
            "0_7",
        ] {
            assert_eq!(kind(text), ScalarKind::Number, "{text}");
        }
        for text in [
            "a",
            "nulls",
            "1.2.3",
            "1e",
            "e3",
            "0x",
            "0xg",
            "-",
            ".",
            "1:30",
            "2001-01-01",
            "tRue",
            "_1",
            "10m",
            "1Gi",
            "v1",
            "--1",
            "inf",
        ] {
            assert_eq!(kind(text), ScalarKind::Text, "{text}");
        }
    }
}
