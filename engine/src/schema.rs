//! JSON Schema of a pipeline file, for editors: keys, kinds, the parameters and ports of each kind.
//!
//! The schema is a help while typing, not the judge: it leaves room for `${...}` wherever a value may be one, and what
//! needs the whole pipeline (sources, types, cycles) is checked by [`crate::plan::compile`] alone.

use serde_json::{Map, Value, json};

use crate::plan::DTYPES;
use crate::port::{Arity, InputPort};
use crate::registry::{Kind, Registry};

/// JSON Schema (draft 2020-12) of a pipeline file with the kinds of `registry`.
pub fn json_schema(registry: &Registry) -> Value {
    let mut definitions = common_definitions();
    for kind in registry.kinds() {
        definitions.insert(params_name(kind), params_schema(kind));
    }
    definitions.insert("stage".to_owned(), stage(registry));
    let mut profile = json!({ "type": ["object", "null"], "properties": sections(), "additionalProperties": false });
    profile["properties"]["description"] = text("What this profile is for");
    let mut properties = sections();
    properties["mpcc"] = json!({ "const": 1, "description": "Format version" });
    properties["name"] = text("The pipeline's name");
    properties["description"] = text("What the pipeline does");
    properties["profiles"] = json!({
        "type": "object",
        "description": "Deep-merged over the pipeline; the first is the default; null deletes",
        "additionalProperties": profile
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mpcc pipeline",
        "type": "object",
        "required": ["mpcc", "stages"],
        "properties": properties,
        "additionalProperties": false,
        "$defs": definitions
    })
}

/// The sections that a pipeline and a profile share.
fn sections() -> Value {
    json!({
        "params": { "type": "object", "description": "Parameters: ${params.NAME}, --set NAME=VALUE" },
        "models": named("#/$defs/model", "Models: anything that can answer"),
        "kinds": named("#/$defs/kind", "Custom kinds, used like built-in ones"),
        "stages": named("#/$defs/stage", "Stages"),
    })
}

fn named(target: &str, about: &str) -> Value {
    let entry = json!({ "anyOf": [{ "$ref": target }, { "type": "null" }] });
    json!({ "type": "object", "description": about, "additionalProperties": entry })
}

fn text(about: &str) -> Value {
    json!({ "type": "string", "description": about })
}

/// A value of `ty`, or `${...}`.
fn or_variable(mut schema: Value, about: &str) -> Value {
    if let Some(map) = schema.as_object_mut() {
        map.remove("description");
    }
    json!({ "description": about, "anyOf": [schema, { "$ref": "#/$defs/variable" }] })
}

fn common_definitions() -> Map<String, Value> {
    let ty =
        json!({ "type": "string", "pattern": "^(dataset|records|records<[A-Za-z]+>|model|scores|table|file|dir)$" });
    let whole = json!({ "type": "integer", "minimum": 0 });
    let size = json!({ "type": ["integer", "string"], "description": "512MiB, 70GiB, or bytes" });
    let definitions = json!({
        "variable": { "type": "string", "pattern": "\\$\\{[^}]+\\}" },
        "words": { "type": ["string", "array"], "items": { "type": ["string", "number", "boolean"] } },
        "type": ty,
        "source": {
            "description": "stage, stage.port, stage[key=value].port, stage[*].port, a model, or something from outside",
            "anyOf": [
                { "type": ["string", "null"] },
                { "$ref": "#/$defs/outside" },
                { "type": "array", "items": { "anyOf": [{ "type": "string" }, { "$ref": "#/$defs/outside" }] } }
            ]
        },
        "outside": {
            "type": "object",
            "properties": { "file": text("A file"), "dir": text("A directory"), "glob": text("A pattern of files") },
            "minProperties": 1, "maxProperties": 1, "additionalProperties": false
        },
        "output": {
            "anyOf": [
                { "$ref": "#/$defs/type" },
                {
                    "type": "object", "required": ["type"], "additionalProperties": false,
                    "properties": {
                        "type": { "$ref": "#/$defs/type" },
                        "path": text("Where the workspace gets a copy"),
                        "description": text("What it holds")
                    }
                }
            ]
        },
        "resources": {
            "type": "object", "additionalProperties": false, "description": "What a node holds while it runs",
            "properties": {
                "cpus": or_variable(whole.clone(), "CPU cores: threads of the stage"),
                "memory": or_variable(size.clone(), "Main memory"),
                "gpus": or_variable(whole, "Whole GPUs"),
                "gpu_memory": or_variable(size, "Memory needed on each GPU")
            }
        },
        "matrix": {
            "type": "object", "description": "The product of its lists and of rows",
            "properties": {
                "rows": { "type": ["array", "null"], "items": { "type": "object" }, "description": "One axis whose steps set several keys" },
                "exclude": { "type": ["array", "null"], "items": { "type": "object" }, "description": "Nodes to leave out" }
            }
        },
        "model": model(),
        "kind": kind()
    });
    definitions.as_object().cloned().unwrap_or_default()
}

fn model() -> Value {
    let from = json!({ "anyOf": [
        { "type": ["string", "null"] },
        { "type": "object", "additionalProperties": false, "properties": {
            "dir": text("A directory in Hugging Face layout"), "hub": text("A model's id on the hub"),
            "revision": text("A commit or branch"), "file": text("Recorded answers, for provider replay")
        } }
    ] });
    let dtypes: Vec<Value> = std::iter::once(Value::Null).chain(DTYPES.map(Value::from)).collect();
    let mut properties = json!({
        "provider": { "enum": ["local", "openai", "replay"] },
        "description": text("What it is for"),
        "from": from,
        "dtype": { "enum": dtypes, "description": "How the weights are held" },
        "system": { "type": ["string", "null"], "description": "Text file with its system prompt" },
        "model": text("The model's name at its server"),
        "revision": text("Revision of a served model"),
        "base_url": text("The server"),
        "api_key_env": text("Environment variable that holds the key"),
        "price": {
            "type": "object", "additionalProperties": false, "description": "Dollars a million tokens",
            "properties": { "prompt": { "type": "number" }, "completion": { "type": "number" } }
        },
        "request": { "type": "object", "description": "Further fields of every request" },
        "timeout": { "type": "number", "description": "Seconds that one request may take" }
    });
    for key in ["max_concurrency", "rpm", "tpm", "budget"] {
        properties[key] = or_variable(json!({ "type": "number" }), "A limit of a served model");
    }
    json!({ "type": "object", "properties": properties, "additionalProperties": false })
}

fn kind() -> Value {
    let param_type = json!({ "enum": ["string", "integer", "number", "boolean", "list", "map", "file"] });
    let param = json!({ "anyOf": [param_type, {
        "type": "object", "required": ["type"], "additionalProperties": false,
        "properties": { "type": param_type, "default": {}, "choices": { "type": "array" }, "description": text("What it does") }
    }] });
    let input = json!({ "anyOf": [{ "$ref": "#/$defs/type" }, {
        "type": "object", "required": ["type"], "additionalProperties": false,
        "properties": {
            "type": { "$ref": "#/$defs/type" }, "list": { "type": "boolean" },
            "optional": { "type": "boolean" }, "description": text("What it takes")
        }
    }] });
    let mut properties = command_keys();
    properties["description"] = text("What it does");
    properties["params"] = json!({ "type": "object", "additionalProperties": param });
    properties["inputs"] = json!({ "type": "object", "additionalProperties": input });
    properties["resources"] = json!({ "$ref": "#/$defs/resources" });
    properties["timeout"] = json!({ "type": ["string", "number"] });
    json!({ "type": "object", "required": ["run"], "properties": properties, "additionalProperties": false })
}

fn command_keys() -> Value {
    json!({
        "run": { "$ref": "#/$defs/words", "description": "Words of a command, or text for sh -c" },
        "each": text("The input whose records go to long-lived workers, one a line"),
        "code": { "$ref": "#/$defs/words", "description": "Files whose content enters the recipe" },
        "env": { "type": "object", "description": "Environment variables; they enter the recipe" },
        "outputs": { "type": "object", "additionalProperties": { "$ref": "#/$defs/output" } }
    })
}

fn stage(registry: &Registry) -> Value {
    let source = json!({ "$ref": "#/$defs/source" });
    let mut properties = command_keys();
    let common = json!({
        "uses": { "type": "string", "anyOf": [{ "enum": registry.kinds().map(|kind| kind.name).collect::<Vec<_>>() }, {}] },
        "with": { "type": "object", "description": "Parameters of the kind" },
        "description": text("What it does"),
        "matrix": { "$ref": "#/$defs/matrix" },
        "when": { "type": ["boolean", "string"], "description": "Decided from params when the pipeline is planned" },
        "inputs": { "type": "object", "additionalProperties": source },
        "needs": { "$ref": "#/$defs/words", "description": "Stages that must end first" },
        "resources": { "$ref": "#/$defs/resources" },
        "retries": or_variable(json!({ "type": "integer", "minimum": 0 }), "How often a failed attempt is repeated"),
        "timeout": { "type": ["string", "number"], "description": "30s, 10m, 2h" },
        "executor": { "enum": ["process", "slurm"] },
        "cache": or_variable(json!({ "type": "boolean" }), "false runs it every time"),
        "seed": or_variable(json!({ "type": "integer", "minimum": 0 }), "Seed; params.seed when not given"),
        "publish": { "type": "object", "additionalProperties": { "type": "string" }, "description": "Copies in the workspace: port -> path" },
        "secrets": { "type": "array", "items": { "type": "string" }, "description": "Environment variables passed on" }
    });
    if let (Some(all), Some(common)) = (properties.as_object_mut(), common.as_object()) {
        all.extend(common.clone());
    }
    let by_kind: Vec<Value> = registry.kinds().map(rule).collect();
    json!({ "type": "object", "properties": properties, "additionalProperties": false, "allOf": by_kind })
}

/// A stage that `uses` this kind has its parameters and its ports.
fn rule(kind: &Kind) -> Value {
    let inputs: Map<String, Value> =
        kind.signature.inputs.iter().map(|port| (port.name.clone(), input(port))).collect();
    json!({
        "if": { "properties": { "uses": { "const": kind.name } }, "required": ["uses"] },
        "then": { "properties": {
            "with": { "$ref": format!("#/$defs/{}", params_name(kind)) },
            "inputs": { "properties": inputs, "additionalProperties": false }
        } }
    })
}

fn input(port: &InputPort) -> Value {
    let ty = port.ty.as_ref().map_or_else(|| "anything".to_owned(), ToString::to_string);
    let many = match port.arity {
        Arity::One => "",
        Arity::Optional => ", optional",
        Arity::Many => ", one or a list",
        Arity::OptionalMany => ", optional, one or a list",
    };
    json!({ "$ref": "#/$defs/source", "description": format!("{ty}{many}") })
}

fn params_name(kind: &Kind) -> String {
    format!("with {}", kind.name).replace(' ', "-")
}

/// The kind's own schema: what it refers to is moved beside it, nothing is required (a profile may add it), and every
/// parameter may be `${...}`.
fn params_schema(kind: &Kind) -> Value {
    let own = kind.schema.as_value();
    let mut properties = Map::new();
    for (name, schema) in own.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let about = schema.get("description").and_then(Value::as_str).unwrap_or_default();
        properties.insert(name.clone(), or_variable(schema.clone(), about));
    }
    let mut schema = json!({
        "type": "object", "description": kind.about, "properties": properties, "additionalProperties": false,
    });
    if let Some(definitions) = own.get("$defs") {
        schema["$defs"] = definitions.clone();
    }
    let moved = format!("#/$defs/{}/$defs/", params_name(kind));
    redirect(&mut schema, &moved);
    schema
}

/// Points `#/$defs/X` of a kind's own schema at where X is now.
fn redirect(part: &mut Value, moved: &str) {
    match part {
        Value::Object(map) => {
            let own = map.get("$ref").and_then(Value::as_str).and_then(|target| target.strip_prefix("#/$defs/"));
            if let Some(name) = own.filter(|name| *name != "variable") {
                let target = format!("{moved}{name}");
                map.insert("$ref".to_owned(), Value::String(target));
            }
            map.values_mut().for_each(|value| redirect(value, moved));
        }
        Value::Array(items) => items.iter_mut().for_each(|item| redirect(item, moved)),
        _ => {}
    }
}
