//! Models: the entries under `models`, checked by provider, with what they are made of.
//!
//! | provider | needs | `from` |
//! |---|---|---|
//! | `local` | `from` | a node's `model` port, `{ dir: PATH }`, `{ hub: ID, revision: REV }` |
//! | `openai` | `model` | none: the server has the weights |
//! | `replay` | `from` | `{ file: PATH }` or a node's output with the recorded answers |

use super::outside::missing_data;
use super::sources::{Lookup, Model};
use super::{CompileOptions, Missing, MissingKind, ModelSource, NodeId, Source};
use crate::interpolate::Scope;
use crate::port::PortType;
use crate::spec::pipeline::{ModelSpec, check_keys};
use crate::spec::source::Problems;
use crate::spec::yaml::{Entry, Yaml};
use crate::stage::{Coordinates, Provider};

const PROVIDERS: [&str; 3] = ["local", "openai", "replay"];
/// How a local model's weights can be held.
pub(crate) const DTYPES: [&str; 3] = ["f32", "bf16", "q8"];
/// Keys every model takes.
const ANY: [&str; 4] = ["provider", "description", "system", "revision"];
const LOCAL: [&str; 2] = ["from", "dtype"];
const OPENAI: [&str; 10] =
    ["model", "base_url", "api_key_env", "max_concurrency", "rpm", "tpm", "budget", "price", "timeout", "request"];
const REPLAY: [&str; 2] = ["from", "model"];
/// Resolves every model of the pipeline into `lookup.models`.
pub(super) fn resolve_models(lookup: &mut Lookup<'_>, options: &CompileOptions, problems: &mut Problems<'_>) {
    for spec in &lookup.pipeline.models {
        let mut missing = Vec::new();
        let source = resolve_model(spec, lookup, options, &mut missing, problems);
        lookup.models.insert(spec.name.clone(), Model { source, missing });
    }
}

fn resolve_model(
    spec: &ModelSpec,
    lookup: &Lookup<'_>,
    options: &CompileOptions,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) -> Option<ModelSource> {
    let fields = Scope::params(lookup.params).resolve(&spec.fields, problems)?;
    let provider = provider(&fields, problems)?;
    check_fields(spec, &fields, provider, problems)?;
    let from = match fields.entry("from").filter(|entry| !entry.value.is_null()) {
        Some(entry) => {
            let made = Making { model: &spec.name, provider, lookup, options };
            made.of(entry, missing, problems)?
        }
        None => None,
    };
    let settings = settings(spec, &fields, lookup, options, missing, problems);
    Some(ModelSource { name: spec.name.clone(), matrix: Coordinates::new(), provider, from, settings })
}

fn provider(fields: &Yaml, problems: &mut Problems<'_>) -> Option<Provider> {
    let Some(value) = fields.get("provider") else { return Some(Provider::Local) };
    let text = value.scalar_text().unwrap_or_default();
    match text.as_str() {
        "local" => Some(Provider::Local),
        "openai" => Some(Provider::Openai),
        "replay" => Some(Provider::Replay),
        _ => {
            let message = format!("there is no provider `{text}`");
            problems.error(value.at, "unknown-provider", message).suggest(&text, PROVIDERS);
            None
        }
    }
}

fn check_fields(spec: &ModelSpec, fields: &Yaml, provider: Provider, problems: &mut Problems<'_>) -> Option<()> {
    let (name, keys, needed): (&str, &[&str], &str) = match provider {
        Provider::Local => ("local", &LOCAL, "from"),
        Provider::Openai => ("openai", &OPENAI, "model"),
        Provider::Replay => ("replay", &REPLAY, "from"),
    };
    let known = [&ANY, keys].concat();
    let own: Vec<Entry> =
        fields.entries().iter().filter(|e| crate::spec::pipeline::MODEL.contains(&e.key.as_str())).cloned().collect();
    let own = Yaml { at: fields.at, data: crate::spec::yaml::Data::Map(own) };
    check_keys(&own, &known, &format!("a model with `provider: {name}`"), problems);
    for (key, what) in [
        ("max_concurrency", "a whole number from 1"),
        ("rpm", "a number from 1"),
        ("tpm", "a number from 1"),
        ("budget", "dollars, a number above 0"),
        ("timeout", "seconds, a number above 0"),
    ] {
        check_number(fields, key, what, problems);
    }
    check_price(fields, problems);
    check_dtype(fields, problems);
    for key in ["model", "base_url", "api_key_env", "dtype", "system", "revision"] {
        if let Some(value) = fields.get(key).filter(|value| value.text().is_none() && !value.is_null()) {
            problems.error(value.at, "type", format!("`{key}` is text, this is {}", value.what()));
        }
    }
    if fields.get(needed).is_none_or(Yaml::is_null) {
        let message = format!("model `{}` with `provider: {name}` needs `{needed}`", spec.name);
        problems.error(spec.at, "missing-key", message);
        return None;
    }
    Some(())
}

fn check_number(fields: &Yaml, key: &str, what: &str, problems: &mut Problems<'_>) {
    let Some(value) = fields.get(key).filter(|value| !value.is_null()) else { return };
    let json = value.to_json();
    let sound = match key {
        "max_concurrency" => json.as_u64().is_some_and(|n| (1..=1 << 20).contains(&n)),
        "rpm" | "tpm" => json.as_f64().is_some_and(|n| n >= 1.0),
        _ => json.as_f64().is_some_and(|n| n > 0.0),
    };
    if !sound {
        problems.error(value.at, "type", format!("`{key}` is {what}, this is {}", value.shown()));
    }
}

/// How weights are held.
fn check_dtype(fields: &Yaml, problems: &mut Problems<'_>) {
    let Some(value) = fields.get("dtype") else { return };
    let Some(text) = value.text().filter(|text| !DTYPES.contains(text)) else { return };
    let message = format!("`dtype` is one of {}, this is `{text}`", DTYPES.join(", "));
    problems.error(value.at, "unknown-dtype", message).suggest(text, DTYPES);
}

/// `price: { prompt: DOLLARS, completion: DOLLARS }` a million tokens; a budget means nothing without it.
fn check_price(fields: &Yaml, problems: &mut Problems<'_>) {
    let stated = |key: &str| fields.get(key).filter(|value| !value.is_null());
    let Some(price) = stated("price") else {
        if let Some(budget) = stated("budget") {
            let message = "`budget` needs `price: { prompt: .., completion: .. }`, dollars a million tokens";
            problems.error(budget.at, "missing-key", message);
        }
        return;
    };
    if !price.is_map() {
        let message = format!("`price` is `{{ prompt: DOLLARS, completion: DOLLARS }}`, this is {}", price.what());
        problems.error(price.at, "type", message);
        return;
    }
    check_keys(price, &["prompt", "completion"], "`price`", problems);
    for entry in price.entries() {
        if !entry.value.to_json().as_f64().is_some_and(|dollars| dollars >= 0.0) {
            let message = format!("`{}` is dollars a million tokens, this is {}", entry.key, entry.value.shown());
            problems.error(entry.value.at, "type", message);
        }
    }
}

/// What a model is made of.
struct Making<'a> {
    model: &'a str,
    provider: Provider,
    lookup: &'a Lookup<'a>,
    options: &'a CompileOptions,
}

impl Making<'_> {
    /// Outer `None`: reported. Inner `None`: not downloaded, noted in `missing`.
    fn of(&self, entry: &Entry, missing: &mut Vec<Missing>, problems: &mut Problems<'_>) -> Option<Option<Source>> {
        if entry.value.is_map() {
            return self.outside(&entry.value, missing, problems);
        }
        let Some(text) = entry.value.text() else {
            let message =
                format!("`from` is a stage, `{{ dir: PATH }}` or `{{ hub: ID }}`, this is {}", entry.value.what());
            problems.error(entry.value.at, "type", message);
            return None;
        };
        let at = entry.value.at;
        let picked = self.lookup.pick(text, at, problems)?;
        if self.provider == Provider::Local && picked.ty != PortType::Model {
            problems.error(
                at,
                "port-type",
                format!("a local model is made from a port of type model, `{text}` is {}", picked.ty),
            );
            return None;
        }
        let [node] = picked.nodes.as_slice() else {
            let message = format!("a model is made from one node, `{text}` leaves {}", picked.nodes.len());
            problems.error(at, "arity", message);
            return None;
        };
        Some(Some(Source::Output { node: NodeId(*node), port: picked.port }))
    }

    fn outside(&self, value: &Yaml, missing: &mut Vec<Missing>, problems: &mut Problems<'_>) -> Option<Option<Source>> {
        let known: &[&str] = if self.provider == Provider::Replay { &["file"] } else { &["dir", "hub", "revision"] };
        check_keys(value, known, "`from`", problems);
        let text = |key: &str| value.get(key).filter(|value| !value.is_null()).and_then(Yaml::text);
        match (text("dir").or_else(|| text("file")), text("hub")) {
            (Some(path), None) => Some(Some(self.path(path, missing))),
            (None, Some(id)) => Some(self.hub(id, text("revision").unwrap_or("main"), missing)),
            _ => {
                let forms = if self.provider == Provider::Replay {
                    "`{ file: PATH }`"
                } else {
                    "`{ dir: PATH }` or `{ hub: ID, revision: REV }`"
                };
                problems.error(value.at, "source", format!("`from` is a stage or {forms}"));
                None
            }
        }
    }

    fn path(&self, path: &str, missing: &mut Vec<Missing>) -> Source {
        let path = self.lookup.outside.absolute(path);
        let tree = self.provider == Provider::Local;
        if !(if tree { self.lookup.outside.is_dir(&path) } else { self.lookup.outside.is_file(&path) }) {
            missing.push(missing_data(self.model, format!("{} is not there", path.display())));
        }
        if tree { Source::Dir { path } } else { Source::File { path } }
    }

    fn hub(&self, id: &str, revision: &str, missing: &mut Vec<Missing>) -> Option<Source> {
        let cache = self.options.hub_cache.as_deref();
        let found = cache
            .and_then(|cache| self.lookup.outside.hub_snapshot(cache, id, revision))
            .map(|path| Source::Dir { path });
        if found.is_none() {
            let place = cache.map_or_else(String::new, |cache| format!(" in {}", cache.display()));
            let message = format!(
                "checkpoint {id} (revision {revision}) is not downloaded{place}: `mpcc model download {id}@{revision}` brings it; \
                 without a network, copy models--{} from a cache that has it",
                id.replace('/', "--")
            );
            missing.push(missing_data(self.model, message));
        }
        found
    }
}

/// The entry less `from`; the prompt file's path becomes its text, nulls go.
fn settings(
    spec: &ModelSpec,
    fields: &Yaml,
    lookup: &Lookup<'_>,
    options: &CompileOptions,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) -> serde_json::Map<String, serde_json::Value> {
    let mut settings = serde_json::Map::new();
    for entry in fields.entries().iter().filter(|e| e.key != "from" && !e.value.is_null()) {
        settings.insert(entry.key.clone(), entry.value.to_json());
    }
    if let Some(system) = fields.get("system") {
        super::params::insert_text(&mut settings, "system", system.at, lookup.outside, &spec.name, missing, problems);
    }
    if let Some(name) = fields.get("api_key_env").and_then(Yaml::text)
        && !options.env_present.contains(name)
    {
        let message = format!("environment variable {name} with the key of `{}` is not set", spec.name);
        missing.push(Missing { what: MissingKind::Key, needed_by: spec.name.clone(), message });
    }
    settings
}
