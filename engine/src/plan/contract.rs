//! Contracts: the ports of every stage, from the registry, from `kinds`, or from a `run` stage itself.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::port::{Arity, InputPort, OutputPort, PortType};
use crate::registry::{Kind, Registry};
use crate::spec::pipeline::{KindSpec, Pipeline, StageSpec, Work, check_keys, check_map, is_name};
use crate::spec::source::Problems;
use crate::spec::yaml::{Entry, Yaml};

/// What a stage does and its ports.
pub(super) struct Contract<'a> {
    /// What it does.
    pub(super) doing: Doing<'a>,
    /// Inputs in declaration order.
    pub(super) inputs: Vec<InputPort>,
    /// Outputs in declaration order.
    pub(super) outputs: Vec<OutputPort>,
}

/// What carries a stage out.
#[derive(Clone, Copy)]
pub(super) enum Doing<'a> {
    /// A kind of the registry.
    Builtin(&'a Kind),
    /// A kind of the pipeline file.
    Custom(&'a CustomKind),
    /// Its own command.
    Command,
}

/// A kind declared under `kinds`.
pub(super) struct CustomKind {
    /// Its name.
    pub(super) name: String,
    /// Parameters in declaration order.
    pub(super) params: Vec<ParamDecl>,
    /// Inputs in declaration order.
    pub(super) inputs: Vec<InputPort>,
    /// Outputs in declaration order.
    pub(super) outputs: Vec<OutputPort>,
    /// The fields as written.
    pub(super) fields: Yaml,
}

/// A parameter of a custom kind.
pub(super) struct ParamDecl {
    /// Its name.
    pub(super) name: String,
    /// Its type.
    pub(super) ty: ParamType,
    /// Its value when a stage gives none; `None` makes it required.
    pub(super) default: Option<Yaml>,
    /// The only values it may have, if there are any.
    pub(super) choices: Vec<Yaml>,
}

/// The type of a parameter of a custom kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ParamType {
    /// Text.
    String,
    /// A whole number.
    Integer,
    /// Any number.
    Number,
    /// `true` or `false`.
    Boolean,
    /// A list.
    List,
    /// A map.
    Map,
    /// The path of a file whose content enters the recipe.
    File,
}

impl ParamType {
    /// Names as written.
    pub(super) const NAMES: [&str; 7] = ["string", "integer", "number", "boolean", "list", "map", "file"];

    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "string" => Self::String,
            "integer" => Self::Integer,
            "number" => Self::Number,
            "boolean" => Self::Boolean,
            "list" => Self::List,
            "map" => Self::Map,
            "file" => Self::File,
            _ => return None,
        })
    }

    /// The name as written.
    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// Whether `value` is of this type.
    pub(super) fn accepts(self, value: &serde_json::Value) -> bool {
        match self {
            Self::String | Self::File => value.is_string(),
            Self::Integer => value.is_i64() || value.is_u64(),
            Self::Number => value.is_number(),
            Self::Boolean => value.is_boolean(),
            Self::List => value.is_array(),
            Self::Map => value.is_object(),
        }
    }
}

/// Reads the `kinds` section.
pub(super) fn custom_kinds(
    specs: &[KindSpec],
    registry: &Registry,
    problems: &mut Problems<'_>,
) -> BTreeMap<String, CustomKind> {
    let mut kinds = BTreeMap::new();
    for spec in specs {
        if registry.get(&spec.name).is_some() {
            problems.error(spec.at, "duplicate-name", format!("`{}` is a built-in kind", spec.name));
        }
        kinds.insert(spec.name.clone(), custom_kind(spec, problems));
    }
    kinds
}

fn custom_kind(spec: &KindSpec, problems: &mut Problems<'_>) -> CustomKind {
    let mut entries = |key: &str| -> Vec<Entry> {
        let value = spec.fields.get(key).filter(|value| check_map(value, &format!("`{key}`"), problems));
        value.map(|value| value.entries().to_vec()).unwrap_or_default()
    };
    let (params, inputs, outputs) = (entries("params"), entries("inputs"), entries("outputs"));
    if spec.fields.get("run").is_none() {
        let message = format!("kind `{}` does nothing", spec.name);
        problems.error(spec.at, "missing-key", message).help("give it a command with `run:`");
    }
    let params = params.iter().filter_map(|entry| param_decl(entry, problems)).collect();
    let inputs = inputs.iter().filter_map(|entry| input_port(entry, problems)).collect();
    let outputs = output_ports(&outputs, problems);
    CustomKind { name: spec.name.clone(), params, inputs, outputs, fields: spec.fields.clone() }
}

fn param_decl(entry: &Entry, problems: &mut Problems<'_>) -> Option<ParamDecl> {
    let (ty, long) = typed(entry, &["type", "default", "choices", "description"], "a parameter", problems)?;
    let text = ty.text().unwrap_or_default();
    let Some(kind) = ParamType::parse(text) else {
        let message = format!("`{text}` is no type of a parameter");
        problems.error(ty.at, "unknown-type", message).suggest(text, ParamType::NAMES);
        return None;
    };
    let default = long.and_then(|long| long.get("default")).cloned();
    if let Some(value) = default.as_ref().filter(|value| !value.is_null() && !kind.accepts(&value.to_json())) {
        let message = format!("the default of `{}` is {}, its type is {}", entry.key, value.what(), kind.name());
        problems.error(value.at, "param-type", message);
    }
    let choices = match long.and_then(|long| long.get("choices")).map(|choices| (&choices.data, choices)) {
        Some((crate::spec::yaml::Data::List(items), _)) => items.clone(),
        Some((_, choices)) => {
            problems.error(choices.at, "type", format!("`choices` is a list, this is {}", choices.what()));
            Vec::new()
        }
        None => Vec::new(),
    };
    Some(ParamDecl { name: entry.key.clone(), ty: kind, default, choices })
}

/// The type of `name: type` or `name: { type: .., .. }`, and the long form.
fn typed<'y>(
    entry: &'y Entry,
    keys: &[&str],
    what: &str,
    problems: &mut Problems<'_>,
) -> Option<(&'y Yaml, Option<&'y Yaml>)> {
    if !is_name(&entry.key, false) {
        problems.error(entry.key_at, "name", format!("`{}` is no name for {what}", entry.key));
    }
    let value = &entry.value;
    if value.text().is_some() {
        return Some((value, None));
    }
    if !value.is_map() {
        problems.error(value.at, "type", format!("{what} is declared by its type, this is {}", value.what()));
        return None;
    }
    check_keys(value, keys, what, problems);
    match value.get("type") {
        Some(ty) if ty.text().is_some() => Some((ty, Some(value))),
        other => {
            let at = other.map_or(entry.key_at, |ty| ty.at);
            problems.error(at, "missing-key", format!("{what} needs a `type`"));
            None
        }
    }
}

fn port_type(ty: &Yaml, problems: &mut Problems<'_>) -> Option<PortType> {
    const NAMES: [&str; 7] = ["dataset", "records", "model", "scores", "table", "file", "dir"];
    let text = ty.text().unwrap_or_default();
    let parsed = PortType::from_str(text);
    if let Err(error) = &parsed {
        problems.error(ty.at, "unknown-type", error.to_string()).suggest(text, NAMES);
    }
    parsed.ok()
}

fn input_port(entry: &Entry, problems: &mut Problems<'_>) -> Option<InputPort> {
    let (ty, long) = typed(entry, &["type", "list", "optional", "description"], "an input", problems)?;
    let mut flag = |key: &str| match long.and_then(|long| long.get(key)) {
        None => false,
        Some(value) => value.to_json().as_bool().unwrap_or_else(|| {
            problems.error(value.at, "type", format!("`{key}` is true or false, this is {}", value.what()));
            false
        }),
    };
    let arity = match (flag("list"), flag("optional")) {
        (false, false) => Arity::One,
        (false, true) => Arity::Optional,
        (true, false) => Arity::Many,
        (true, true) => Arity::OptionalMany,
    };
    Some(InputPort { name: entry.key.clone(), ty: Some(port_type(ty, problems)?), arity })
}

fn output_ports(entries: &[Entry], problems: &mut Problems<'_>) -> Vec<OutputPort> {
    let mut ports = Vec::new();
    for entry in entries {
        let read = typed(entry, &["type", "path", "description"], "an output", problems);
        let ty = read.and_then(|(ty, _)| port_type(ty, problems));
        ports.extend(ty.map(|ty| OutputPort { name: entry.key.clone(), ty }));
    }
    ports
}

/// The contract of every stage, in the pipeline's order; `None` where it cannot be told, which is reported.
pub(super) fn contracts<'a>(
    pipeline: &Pipeline,
    registry: &'a Registry,
    kinds: &'a BTreeMap<String, CustomKind>,
    problems: &mut Problems<'_>,
) -> Vec<Option<Contract<'a>>> {
    pipeline.stages.iter().map(|stage| contract(stage, registry, kinds, problems)).collect()
}

fn contract<'a>(
    stage: &StageSpec,
    registry: &'a Registry,
    kinds: &'a BTreeMap<String, CustomKind>,
    problems: &mut Problems<'_>,
) -> Option<Contract<'a>> {
    let Work::Uses(name, at) = &stage.work else {
        return Some(command_contract(stage, problems));
    };
    if let Some(kind) = kinds.get(name) {
        let (inputs, outputs) = (kind.inputs.clone(), kind.outputs.clone());
        return Some(Contract { doing: Doing::Custom(kind), inputs, outputs });
    }
    let Some(kind) = registry.get(name) else {
        let known = registry.kinds().map(|kind| kind.name).chain(kinds.keys().map(String::as_str));
        problems.error(*at, "unknown-kind", format!("there is no kind `{name}`")).suggest(name, known);
        return None;
    };
    let signature = kind.signature.clone();
    Some(Contract { doing: Doing::Builtin(kind), inputs: signature.inputs, outputs: signature.outputs })
}

/// A `run` stage takes whatever it is given; its outputs are declared.
fn command_contract<'a>(stage: &StageSpec, problems: &mut Problems<'_>) -> Contract<'a> {
    let inputs = stage.fields.get("inputs").map(Yaml::entries).unwrap_or_default();
    let inputs =
        inputs.iter().map(|entry| InputPort { name: entry.key.clone(), ty: None, arity: Arity::Many }).collect();
    let outputs = stage.fields.get("outputs").map(Yaml::entries).unwrap_or_default();
    Contract { doing: Doing::Command, inputs, outputs: output_ports(outputs, problems) }
}
