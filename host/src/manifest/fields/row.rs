//! A row of the table of fields.

/// The type of a field's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    Text,
    /// `true` or `false`.
    Bool,
    Int,
    /// The number of a port, or its name.
    Port,
    /// A Kubernetes quantity: a string or number like `500m`, `2`, `1.5Gi`.
    Quantity,
    Texts,
    /// A list of whole numbers.
    Ints,
    /// A file's permissions: octal with a leading zero, or a whole number.
    Mode,
    /// A mapping of strings to strings.
    TextMap,
    /// A mapping whose fields are in the table, under this path and a dot.
    Object,
    /// A list of mappings whose fields are in the table, under this path, `[]` and a dot.
    Objects,
    Any,
}

impl Shape {
    /// A word for messages.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Text => "string",
            Self::Bool => "true or false",
            Self::Int => "whole number",
            Self::Port => "port number or name",
            Self::Quantity => "quantity",
            Self::Texts => "list of strings",
            Self::Ints => "list of whole numbers",
            Self::Mode => "file mode",
            Self::TextMap => "mapping of strings",
            Self::Object => "mapping",
            Self::Objects => "list of mappings",
            Self::Any => "anything",
        }
    }
}

/// What happens to a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It has the meaning of Kubernetes.
    Supported,
    /// Only these values are accepted, because they describe what happens in any case.
    Only { values: &'static [&'static str], why: &'static str },
    /// A manifest with it is refused.
    Refused { why: &'static str, empty: Empty },
    /// It may be present and changes nothing, which is said unless it has one of these values.
    Ignored { why: &'static str, defaults: &'static [&'static str] },
}

/// What an empty value of a refused field means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Empty {
    /// As if the field was absent.
    AsksNothing,
    /// The field chooses one of several things by its mere presence.
    Asks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    /// Like `spec.containers[].image`: `[]` stands for every element of a list.
    pub path: &'static str,
    pub shape: Shape,
    pub status: Status,
    /// Its purpose with default and limits, for supported fields.
    pub about: &'static str,
}

pub(super) const fn yes(path: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { path, shape, status: Status::Supported, about }
}

pub(super) const fn no(path: &'static str, why: &'static str) -> Field {
    let status = Status::Refused { why, empty: Empty::AsksNothing };
    Field { path, shape: Shape::Any, status, about: "" }
}

/// A refused field that is one of several sources, so that `{}` is a choice too.
pub(super) const fn no_source(path: &'static str, why: &'static str) -> Field {
    Field { path, shape: Shape::Any, status: Status::Refused { why, empty: Empty::Asks }, about: "" }
}

pub(super) const fn only(
    path: &'static str,
    shape: Shape,
    values: &'static [&'static str],
    why: &'static str,
) -> Field {
    Field { path, shape, status: Status::Only { values, why }, about: "" }
}

pub(super) const fn skip(path: &'static str, why: &'static str) -> Field {
    skip_quietly(path, &[], why)
}

/// An ignored field with the values that are not worth a word, since they are the defaults.
pub(super) const fn skip_quietly(
    path: &'static str,
    defaults: &'static [&'static str],
    why: &'static str,
) -> Field {
    Field { path, shape: Shape::Any, status: Status::Ignored { why, defaults }, about: "" }
}
