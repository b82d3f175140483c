//! Options spelled as their types describe them: `size=8G,requested=1G` for a struct, or one name for an
//! enum.
//!
//! A type's JSON schema has the keys, and for each its values, its meaning and its default. The schema turns
//! the text into JSON, and serde turns JSON into the type.

use std::fmt::Write;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The type of an option with several settings.
pub trait Settings: JsonSchema + DeserializeOwned {
    /// The key of the first setting if that is written without a key.
    const IMPLIED_KEY: Option<&str> = None;
}

/// Reads the settings of an option, each a key and a value. Keys are written with dashes where fields
/// have underscores. A comma in a value, as a path may have one, is written twice.
pub fn parse<T: Settings>(text: &str) -> Result<T, String> {
    let schema = schema_of::<T>();
    let mut settings = Map::new();
    for (index, setting) in split_at_single_commas(text).into_iter().enumerate() {
        let (key, value) = match (setting.split_once('='), T::IMPLIED_KEY) {
            (Some(pair), _) => pair,
            (None, Some(key)) if index == 0 => (key, setting),
            (None, _) => {
                return Err(format!(
                    "invalid setting {setting:?}: expected key=value, and commas in values doubled"
                ));
            }
        };
        let field = key.replace('-', "_");
        let Some(property) = schema["properties"].get(&field) else {
            return Err(format!("unknown key {key:?}: expected {}", keys(&schema)));
        };
        let value = value.replace(",,", ",");
        let spelled = spell(property, &value)
            .ok_or_else(|| format!("invalid {key}={value}: expected {}", expected(property)))?;
        if settings.insert(field, spelled).is_some() {
            return Err(format!("{key} is given twice"));
        }
    }
    let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for field in required {
        if !settings.contains_key(field) {
            let (key, form) = (dashed(field), form(&schema["properties"][field]));
            return Err(format!("missing {key}: specify {key}={form}"));
        }
    }
    serde_json::from_value(Value::Object(settings)).map_err(|error| error.to_string())
}

/// Reads one value of an enum that also has values such as `file:PATH`.
pub fn parse_value<T: JsonSchema + DeserializeOwned>(text: &str) -> Result<T, String> {
    let schema = schema_of::<T>();
    let value = spell(&schema, text).ok_or_else(|| format!("expected {}", expected(&schema)))?;
    serde_json::from_value(value).map_err(|error| error.to_string())
}

/// The parser of an enum whose variants are names.
pub fn names<T: JsonSchema + DeserializeOwned + Clone + Send + Sync + 'static>()
-> impl TypedValueParser<Value = T> {
    let schema = schema_of::<T>();
    let names = alternatives(&schema).into_iter().flat_map(|alternative| {
        let name = |name| PossibleValue::new(name).help(description(alternative));
        Form::of(alternative).show().into_iter().map(name)
    });
    PossibleValuesParser::new(names.collect::<Vec<_>>())
        .try_map(|name| serde_json::from_value(Value::String(name)))
}

/// The help of an option: `summary`, and what its keys mean.
pub fn help<T: Settings>(summary: &str) -> String {
    let schema = schema_of::<T>();
    let mut help = format!("{summary}. Settings, separated by commas:");
    for (field, property) in schema["properties"].as_object().into_iter().flatten() {
        let mut key = format!("{}=", dashed(field));
        if T::IMPLIED_KEY == Some(field) {
            key = format!("[{key}]");
        }
        let _ = write!(help, "\n  {key}{}: {}", form(property), description(property));
        let default = match property.get("default") {
            None | Some(Value::Null) => continue,
            Some(Value::Bool(true)) => "on",
            Some(Value::Bool(false)) => "off",
            Some(Value::String(default)) => default,
            Some(other) => &other.to_string(),
        };
        let _ = write!(help, " [default: {default}]");
    }
    help
}

fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::default().with(|settings| settings.inline_subschemas = true);
    settings.into_generator().into_root_schema_for::<T>().to_value()
}

fn split_at_single_commas(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut from) = (0, 0);
    while let Some(comma) = text[from..].find(',').map(|comma| from + comma) {
        if text[comma + 1..].starts_with(',') {
            from = comma + 2;
        } else {
            pieces.push(&text[start..comma]);
            (start, from) = (comma + 1, comma + 1);
        }
    }
    pieces.push(&text[start..]);
    pieces
}

fn dashed(field: &str) -> String {
    field.replace('_', "-")
}

/// The keys of a struct, as a list for a sentence.
fn keys(schema: &Value) -> String {
    let fields = schema["properties"].as_object().into_iter().flatten();
    any_of(fields.map(|(field, _)| dashed(field)).collect())
}

/// `a, b or c`.
fn any_of(mut names: Vec<String>) -> String {
    match (names.pop(), names.is_empty()) {
        (None, _) => "nothing".into(),
        (Some(only), true) => only,
        (Some(last), false) => format!("{} or {last}", names.join(", ")),
    }
}

/// The schemas in a choice: a value matches one of them.
fn alternatives(schema: &Value) -> Vec<&Value> {
    let choice = schema.get("oneOf").or(schema.get("anyOf")).and_then(Value::as_array);
    match choice {
        Some(choice) => choice.iter().flat_map(alternatives).collect(),
        None if is_a(schema, "null") && schema["type"].is_string() => Vec::new(),
        None => vec![schema],
    }
}

fn is_a(schema: &Value, kind: &str) -> bool {
    match &schema["type"] {
        Value::Array(kinds) => kinds.iter().any(|it| it == kind),
        only => only == kind,
    }
}

/// The values that a schema without a choice admits.
enum Form<'a> {
    /// One of these names; a schema has several if none of them is documented.
    Names(Vec<&'a str>),
    Switch,
    /// A number between these.
    Number(u64, u64),
    /// A variant's name and, after a colon, what is in it.
    Variant(&'a str, &'a Value),
    /// A text, with the name that help shows for it.
    Text(String),
}

impl<'a> Form<'a> {
    fn of(schema: &'a Value) -> Self {
        let bound = |name: &str| schema.get(name).and_then(Value::as_u64);
        if let Some(name) = schema["const"].as_str() {
            Self::Names(vec![name])
        } else if let Some(names) = schema["enum"].as_array() {
            Self::Names(names.iter().filter_map(Value::as_str).collect())
        } else if is_a(schema, "boolean") {
            Self::Switch
        } else if is_a(schema, "string") {
            Self::Text(schema["format"].as_str().unwrap_or("text").to_uppercase())
        } else if is_a(schema, "integer") {
            let (minimum, maximum) = (bound("minimum"), bound("maximum"));
            Self::Number(minimum.unwrap_or(0), maximum.unwrap_or(u64::MAX))
        } else {
            let variant = schema["properties"].as_object().and_then(|fields| fields.iter().next());
            let (name, inner) = variant.expect("options are made of these types");
            Self::Variant(name, inner)
        }
    }

    /// `text` as JSON, if it has this form.
    fn spell(&self, text: &str) -> Option<Value> {
        match self {
            Self::Names(names) => names.contains(&text).then(|| text.into()),
            Self::Switch => match text {
                "on" => Some(true.into()),
                "off" => Some(false.into()),
                _ => None,
            },
            Self::Number(minimum, maximum) => {
                let number = text.parse().ok()?;
                (minimum..=maximum).contains(&&number).then(|| number.into())
            }
            Self::Variant(name, inner) => {
                let text = text.strip_prefix(name)?.strip_prefix(':')?;
                let inner = spell(inner, text).filter(|_| !text.is_empty())?;
                Some(Map::from_iter([((*name).to_owned(), inner)]).into())
            }
            Self::Text(_) => Some(text.into()),
        }
    }

    /// The form as help and errors show it.
    fn show(&self) -> Vec<String> {
        match self {
            Self::Names(names) => names.iter().map(ToString::to_string).collect(),
            Self::Switch => vec!["on".into(), "off".into()],
            Self::Number(..) => vec!["N".into()],
            Self::Variant(name, inner) => vec![format!("{name}:{}", form(inner))],
            Self::Text(name) => vec![name.clone()],
        }
    }
}

fn spell(schema: &Value, text: &str) -> Option<Value> {
    alternatives(schema).into_iter().find_map(|alternative| Form::of(alternative).spell(text))
}

/// The values of a key: `on|off`, `anonymous|file:PATH`, `N`, `SIZE`.
fn form(schema: &Value) -> String {
    shown(schema).join("|")
}

/// The same as part of a sentence.
fn expected(schema: &Value) -> String {
    match alternatives(schema)[..] {
        [only] if let Form::Number(minimum, u64::MAX) = Form::of(only) => {
            format!("a number from {minimum} on")
        }
        [only] if let Form::Number(minimum, maximum) = Form::of(only) => {
            format!("a number from {minimum} to {maximum}")
        }
        _ => any_of(shown(schema)),
    }
}

fn shown(schema: &Value) -> Vec<String> {
    alternatives(schema).into_iter().flat_map(|alternative| Form::of(alternative).show()).collect()
}

/// The first paragraph of a schema's documentation, without the period.
fn description(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let paragraph = text.split("\n\n").next().unwrap_or_default();
    paragraph.replace('\n', " ").trim_end_matches('.').to_owned()
}

#[cfg(test)]
#[path = "settings_test.rs"]
mod tests;
