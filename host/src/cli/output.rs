//! The formats of `-o`: tables, names, JSON, YAML, JSONPath and custom columns.

use super::error::{CliError, Kind};
use super::jsonpath::{self, EvalError, Path, Template};
use super::{Format, print_as, ui};
use crate::store::text::harmless;
use clap::builder::{PossibleValue, TypedValueParser};
use serde_json::{Value, json};
use std::cmp::Ordering;
use std::ffi::OsStr;

/// Most custom columns.
const MAX_COLUMNS: usize = 64;
/// What custom columns show of a value that is not there.
const NONE: &str = "<none>";

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Output {
    Wide,
    Name,
    Json,
    Yaml,
    Path(Template),
    Columns(Vec<Column>),
}

/// One of the custom columns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Column {
    head: String,
    path: Path,
}

fn parse(text: &str) -> Result<Output, String> {
    let (name, rest) = text.split_once('=').map_or((text, None), |(name, rest)| (name, Some(rest)));
    match (name, rest) {
        ("wide", None) => Ok(Output::Wide),
        ("name", None) => Ok(Output::Name),
        ("json", None) => Ok(Output::Json),
        ("yaml", None) => Ok(Output::Yaml),
        ("jsonpath", Some(template)) => {
            Template::parse(template).map(Output::Path).map_err(|error| error.to_string())
        }
        ("custom-columns", Some(columns)) => self::columns(columns).map(Output::Columns),
        ("jsonpath", None) => Err("write the template behind it: jsonpath='{.metadata.name}'".to_owned()),
        ("custom-columns", None) => {
            Err("write the columns behind it: custom-columns=NAME:.metadata.name,IP:.status.podIP".to_owned())
        }
        _ => Err("it is one of wide, name, json, yaml, jsonpath=… and custom-columns=…".to_owned()),
    }
}

fn columns(mut text: &str) -> Result<Vec<Column>, String> {
    let mut columns = Vec::new();
    loop {
        let (head, rest) = text
            .split_once(':')
            .filter(|(head, _)| !head.is_empty())
            .ok_or_else(|| format!("{text:?} is not HEAD:PATH"))?;
        let (path, rest) = Path::parse_prefix(rest).map_err(|error| format!("column {head}: {error}"))?;
        columns.push(Column { head: head.to_owned(), path });
        if columns.len() > MAX_COLUMNS {
            return Err(format!("there are more than {MAX_COLUMNS} columns"));
        }
        match rest.strip_prefix(',') {
            Some(more) => text = more,
            None if rest.is_empty() => return Ok(columns),
            None => return Err(format!("column {head}: unexpected {rest:?} behind the path")),
        }
    }
}

/// The path of `--sort-by`, with or without braces.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SortBy {
    text: String,
    path: Path,
}

impl std::str::FromStr for SortBy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, rest) = Path::parse_prefix(text).map_err(|error| error.to_string())?;
        match rest {
            "" => Ok(Self { text: text.to_owned(), path }),
            rest => Err(format!("unexpected {rest:?} behind the path")),
        }
    }
}

impl SortBy {
    /// Sorts things by what their objects have at the path: numbers by their size, other values by their text, and first those that have
    /// nothing there.
    pub(super) fn sort<T>(
        &self,
        things: Vec<T>,
        object: impl Fn(&T) -> Result<Value, CliError>,
    ) -> Result<Vec<T>, CliError> {
        let mut keyed = Vec::new();
        for thing in things {
            let object = object(&thing)?;
            let key = self.path.find(&object)?.into_iter().next().cloned();
            keyed.push((key, thing));
        }
        if !keyed.is_empty() && keyed.iter().all(|(key, _)| key.is_none()) {
            let message = format!("`--sort-by`: nothing has a value at {}", self.text);
            return Err(CliError::new(Kind::User, message).hint("Use a path as .metadata.creationTimestamp."));
        }
        keyed.sort_by(|(one, _), (other, _)| compare(one.as_ref(), other.as_ref()));
        Ok(keyed.into_iter().map(|(_, thing)| thing).collect())
    }
}

fn compare(one: Option<&Value>, other: Option<&Value>) -> Ordering {
    let number = |value: &Value| value.as_f64();
    match (one, other) {
        (Some(one), Some(other)) => match (number(one), number(other)) {
            (Some(one), Some(other)) => one.total_cmp(&other),
            (None, None) => jsonpath::text(one).cmp(&jsonpath::text(other)),
            // Numbers stand before texts.
            (one, other) => other.is_some().cmp(&one.is_some()),
        },
        (one, other) => one.is_some().cmp(&other.is_some()),
    }
}

/// Parses `-o` for clap. The shells complete its possible values.
#[derive(Debug, Clone)]
pub(super) struct OutputParser {
    /// Whether there are tables, with more columns for `wide`, and names.
    pub(super) lists: bool,
}

impl TypedValueParser for OutputParser {
    type Value = Output;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _arg: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Output, clap::Error> {
        let text = value.to_string_lossy();
        let parsed = parse(&text).and_then(|output| match output {
            Output::Wide | Output::Name if !self.lists => {
                Err("it is one of json, yaml, jsonpath=… and custom-columns=…".to_owned())
            }
            output => Ok(output),
        });
        parsed.map_err(|why| {
            let message = format!("invalid value {text:?} for '--output <FORMAT>': {why}");
            clap::Error::raw(clap::error::ErrorKind::ValueValidation, message + "\n").with_cmd(command)
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let all = [
            ("wide", true),
            ("name", true),
            ("json", false),
            ("yaml", false),
            ("jsonpath=", false),
            ("custom-columns=", false),
        ];
        let mine = all.into_iter().filter(|(_, of_lists)| self.lists || !of_lists);
        Some(Box::new(mine.map(|(name, _)| PossibleValue::new(name))))
    }
}

impl From<EvalError> for CliError {
    fn from(error: EvalError) -> Self {
        Self::of(Kind::User, &error).hint("Use a path that says more exactly what it looks for.")
    }
}

/// Whether objects are printed as one list or each for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// The only object.
    One,
    /// A list of this kind.
    List(&'static str),
}

/// Prints objects in a format that is made of them; `false` for the tables of a verb.
pub(super) fn print(items: Vec<Value>, shape: Shape, output: &Output, heads: bool) -> Result<bool, CliError> {
    match output {
        Output::Wide => return Ok(false),
        Output::Name => items.iter().for_each(|item| ui::line(&name(item))),
        Output::Columns(columns) => {
            let mut rows = Vec::new();
            if heads {
                rows.push(columns.iter().map(|column| column.head.clone()).collect());
            }
            for item in &items {
                rows.push(cells(columns, item)?);
            }
            ui::table(&rows);
        }
        Output::Json => print_as(&whole(items, shape), Format::Json)?,
        Output::Yaml => print_as(&whole(items, shape), Format::Yaml)?,
        Output::Path(template) => {
            let text = template.render(&whole(items, shape))?;
            ui::bytes(harmless(&text, &['\n', '\t']).as_bytes());
        }
    }
    Ok(true)
}

fn cells(columns: &[Column], item: &Value) -> Result<Vec<String>, CliError> {
    let cell = |column: &Column| {
        let found: Vec<String> = column.path.find(item)?.into_iter().map(jsonpath::text).collect();
        Ok(if found.is_empty() { NONE.to_owned() } else { found.join(",") })
    };
    columns.iter().map(cell).collect()
}

fn whole(items: Vec<Value>, shape: Shape) -> Value {
    match shape {
        Shape::One => items.into_iter().next().unwrap_or_default(),
        Shape::List(kind) => json!({ "apiVersion": "v1", "kind": kind, "items": items }),
    }
}

/// `pod/web`, or with a namespace other than `default` `pod/team/web`, which verbs take as a name.
fn name(item: &Value) -> String {
    let text = |path: &str| item.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let kind = text("/kind").to_ascii_lowercase();
    let name = match text("/metadata/namespace") {
        "" | "default" => text("/metadata/name").to_owned(),
        namespace => format!("{namespace}/{}", text("/metadata/name")),
    };
    harmless(&format!("{kind}/{name}"), &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_read_with_their_reasons() {
        assert_eq!(parse("wide"), Ok(Output::Wide));
        assert!(matches!(parse("jsonpath={.a}{\"=\"}"), Ok(Output::Path(_))));
        for (text, why) in [
            ("table", "it is one of"),
            ("wide=x", "it is one of"),
            ("jsonpath", "write the template"),
            ("jsonpath={.a", "character 4"),
            ("custom-columns", "write the columns"),
            ("custom-columns=", "is not HEAD:PATH"),
            ("custom-columns=A:.a,", "is not HEAD:PATH"),
            ("custom-columns=A:.a}", "unexpected \"}\""),
            ("custom-columns=A:.a[", "column A: character 4"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(columns(&"A:.a,".repeat(70)).unwrap_err().contains("64"));
    }

    #[test]
    fn custom_columns_show_values_and_what_is_not_there() {
        let Ok(Output::Columns(columns)) =
            parse("custom-columns=NAME:.metadata.name,ALL:.a[*],B:{.a[?(@==\"x,y\")]},NO:.no")
        else {
            panic!("columns")
        };
        let item = json!({ "metadata": { "name": "web" }, "a": [1, "x,y"] });
        assert_eq!(cells(&columns, &item).unwrap(), ["web", "1,x,y", "x,y", NONE]);
        assert_eq!(
            columns.iter().map(|column| column.head.as_str()).collect::<Vec<_>>(),
            ["NAME", "ALL", "B", "NO"]
        );
    }

    #[test]
    fn names_can_be_given_to_verbs() {
        let named =
            |namespace: &str| json!({ "kind": "Pod", "metadata": { "name": "web", "namespace": namespace } });
        assert_eq!(name(&named("default")), "pod/web");
        assert_eq!(name(&named("team")), "pod/team/web");
    }
}
