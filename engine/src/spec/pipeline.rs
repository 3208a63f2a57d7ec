//! The shape of a pipeline: sections, stages, models and kinds with their fields; unknown keys are reported with the
//! nearest known one. Values inside fields stay [`Yaml`]: most hold `${...}`, and each node resolves its own.

use super::merge::{Deleted, overlay, set};
use super::source::{Problems, Span, suggestion};
use super::yaml::{Data, Entry, Yaml};

/// Keys of a pipeline file.
pub(crate) const TOP: [&str; 8] = ["mpcc", "name", "description", "params", "profiles", "models", "kinds", "stages"];
/// Sections a profile may change.
pub(crate) const PROFILE: [&str; 5] = ["description", "params", "models", "kinds", "stages"];
/// Keys every stage takes.
pub(crate) const COMMON: [&str; 13] = [
    "description",
    "matrix",
    "when",
    "inputs",
    "needs",
    "resources",
    "retries",
    "timeout",
    "executor",
    "cache",
    "seed",
    "publish",
    "secrets",
];
/// Keys of a stage that `uses` a kind, beside the common ones.
pub(crate) const OF_KIND: [&str; 2] = ["uses", "with"];
/// Keys of a stage that runs a command, beside the common ones.
pub(crate) const OF_COMMAND: [&str; 5] = ["run", "each", "code", "env", "outputs"];
/// Keys of a custom kind.
pub(crate) const KIND: [&str; 10] =
    ["description", "params", "inputs", "outputs", "run", "each", "code", "env", "resources", "timeout"];
/// Keys of a model.
pub(crate) const MODEL: [&str; 16] = [
    "provider",
    "description",
    "from",
    "dtype",
    "system",
    "model",
    "revision",
    "base_url",
    "api_key_env",
    "max_concurrency",
    "rpm",
    "tpm",
    "budget",
    "price",
    "timeout",
    "request",
];

/// A pipeline as written, profile and `--set` applied.
pub(crate) struct Pipeline {
    /// `name:`.
    pub(crate) name: String,
    /// The profile in force.
    pub(crate) profile: Option<String>,
    /// `params:`, a map.
    pub(crate) params: Yaml,
    /// `models:`.
    pub(crate) models: Vec<ModelSpec>,
    /// `kinds:`.
    pub(crate) kinds: Vec<KindSpec>,
    /// `stages:`, in order.
    pub(crate) stages: Vec<StageSpec>,
    /// What the profile took away.
    pub(crate) deleted: Deleted,
}

/// An entry under `stages`.
pub(crate) struct StageSpec {
    /// Its name.
    pub(crate) name: String,
    /// Where its name is.
    pub(crate) at: Span,
    /// What it does.
    pub(crate) work: Work,
    /// Its fields, a map.
    pub(crate) fields: Yaml,
}

/// What a stage does.
pub(crate) enum Work {
    /// `uses:`, and where the name of the kind is.
    Uses(String, Span),
    /// `run:`.
    Run,
}

/// An entry under `models`.
pub(crate) struct ModelSpec {
    /// Its name.
    pub(crate) name: String,
    /// Where its name is.
    pub(crate) at: Span,
    /// Its fields, a map.
    pub(crate) fields: Yaml,
}

/// An entry under `kinds`.
pub(crate) struct KindSpec {
    /// Its name.
    pub(crate) name: String,
    /// Where its name is.
    pub(crate) at: Span,
    /// Its fields, a map.
    pub(crate) fields: Yaml,
}

/// Reads the shape of a pipeline with `profile` (or the first one) in force.
pub(crate) fn read(
    root: Yaml,
    profile: Option<&str>,
    sets: &[(String, String)],
    problems: &mut Problems<'_>,
) -> Option<Pipeline> {
    if !root.is_map() {
        problems.error(
            root.at,
            "pipeline",
            format!("a pipeline is a map with `mpcc: 1` and `stages`, this is {}", root.what()),
        );
        return None;
    }
    check_version(&root, problems);
    check_keys(&root, &TOP, "a pipeline", problems);
    let name = read_name(&root, problems);
    let (profile, mut root, deleted) = apply_profile(root, profile, problems)?;
    for (key, value) in sets {
        set(&mut root, key, value, problems);
    }
    let params = section(&root, "params", problems);
    check_names(&params, "parameter", problems);
    let models = named(&root, "models", "model", problems, |name, at, fields, problems| {
        check_keys(&fields, &MODEL, "a model", problems);
        Some(ModelSpec { name, at, fields })
    });
    let kinds = named(&root, "kinds", "kind", problems, |name, at, fields, problems| {
        check_keys(&fields, &KIND, "a kind", problems);
        Some(KindSpec { name, at, fields })
    });
    let names: Vec<String> =
        root.get("stages").map(Yaml::entries).unwrap_or_default().iter().map(|entry| entry.key.clone()).collect();
    let stages = named(&root, "stages", "stage", problems, |name, at, fields, problems| {
        read_stage(name, at, fields, &names, problems)
    });
    if root.entry("stages").is_none() {
        problems.error(root.at, "missing-key", "a pipeline needs `stages`");
    }
    check_namespace(&stages, &models, problems);
    Some(Pipeline { name, profile, params, models, kinds, stages, deleted })
}

fn check_version(root: &Yaml, problems: &mut Problems<'_>) {
    match root.get("mpcc") {
        None => {
            problems.error(root.at, "version", "the format version is missing").help("begin the file with `mpcc: 1`");
        }
        Some(version) if version.to_json() != serde_json::json!(1) => {
            let text = version.scalar_text().unwrap_or_else(|| version.what().to_owned());
            problems
                .error(version.at, "version", format!("format version {text} is not known"))
                .help("this build of mpcc reads `mpcc: 1`");
        }
        Some(_) => {}
    }
}

fn read_name(root: &Yaml, problems: &mut Problems<'_>) -> String {
    match root.get("name") {
        None => "pipeline".to_owned(),
        Some(name) => name.text().map(str::to_owned).unwrap_or_else(|| {
            problems.error(name.at, "type", format!("`name` is text, this is {}", name.what()));
            String::new()
        }),
    }
}

/// Lays the chosen profile over the pipeline; the shape of the others is checked too.
fn apply_profile(
    root: Yaml,
    wanted: Option<&str>,
    problems: &mut Problems<'_>,
) -> Option<(Option<String>, Yaml, Deleted)> {
    let profiles = section(&root, "profiles", problems);
    for entry in profiles.entries() {
        check_profile(entry, problems);
    }
    let chosen = match wanted {
        None => profiles.entries().first(),
        Some(name) => {
            let Some(entry) = profiles.entry(name) else {
                let known = profiles.entries().iter().map(|entry| entry.key.as_str());
                let message = format!("the pipeline has no profile `{name}`");
                problems.error(Span::COMMAND_LINE, "unknown-profile", message).suggest(name, known);
                return None;
            };
            Some(entry)
        }
    };
    match chosen {
        Some(entry) if entry.value.is_map() => {
            let (merged, deleted) = overlay(root, &entry.value, problems);
            Some((Some(entry.key.clone()), merged, deleted))
        }
        other => Some((other.map(|entry| entry.key.clone()), root, Deleted::default())),
    }
}

fn check_profile(profile: &Entry, problems: &mut Problems<'_>) {
    if profile.value.is_null() {
        return;
    }
    if !check_map(&profile.value, &format!("profile `{}`", profile.key), problems) {
        return;
    }
    check_keys(&profile.value, &PROFILE, "a profile", problems);
    let sections = [
        ("stages", "a stage", stage_keys()),
        ("models", "a model", MODEL.to_vec()),
        ("kinds", "a kind", KIND.to_vec()),
    ];
    for (section, whose, keys) in sections {
        for entry in profile.value.get(section).map(Yaml::entries).unwrap_or_default() {
            check_keys(&entry.value, &keys, whose, problems);
        }
    }
}

fn stage_keys() -> Vec<&'static str> {
    [&COMMON[..], &OF_KIND, &OF_COMMAND].concat()
}

fn read_stage(
    name: String,
    at: Span,
    fields: Yaml,
    names: &[String],
    problems: &mut Problems<'_>,
) -> Option<StageSpec> {
    check_keys(&fields, &stage_keys(), "a stage", problems);
    for key in ["inputs", "with", "outputs", "env", "publish", "resources", "matrix"] {
        if let Some(value) = fields.get(key) {
            check_map(value, &format!("`{key}`"), problems);
        }
    }
    match (fields.get("uses"), fields.get("run")) {
        (Some(uses), None) => {
            let kind = uses.text().map(str::to_owned);
            if kind.is_none() {
                problems.error(uses.at, "type", format!("`uses` names a kind, this is {}", uses.what()));
            }
            for key in OF_COMMAND {
                if let Some(entry) = fields.entry(key) {
                    problems
                        .error(entry.key_at, "mixed-stage", format!("`{key}` belongs to a stage with `run`"))
                        .help("this stage `uses` a kind; declare it under `kinds` to give it a command");
                }
            }
            let place = uses.at;
            Some(StageSpec { name, at, work: Work::Uses(kind?, place), fields })
        }
        (None, Some(_)) => {
            if let Some(entry) = fields.entry("with") {
                problems
                    .error(
                        entry.key_at,
                        "mixed-stage",
                        "`with` sets the parameters of a kind, this stage has a command",
                    )
                    .help("write `${params.NAME}` in `run`, or declare a kind under `kinds`");
            }
            Some(StageSpec { name, at, work: Work::Run, fields })
        }
        (Some(_), Some(run)) => {
            problems.error(run.at, "mixed-stage", format!("stage `{name}` has both `uses` and `run`"));
            None
        }
        (None, None) => {
            // In a profile this is mostly a name that was meant to be another stage's.
            let others: Vec<&str> = names.iter().map(String::as_str).filter(|other| *other != name).collect();
            let near = suggestion(&name, &others).filter(|help| help.starts_with("did you mean"));
            problems
                .error(at, "missing-key", format!("stage `{name}` does nothing"))
                .help(near.unwrap_or_else(|| "name a kind with `uses:` or a command with `run:`".to_owned()));
            None
        }
    }
}

fn check_namespace(stages: &[StageSpec], models: &[ModelSpec], problems: &mut Problems<'_>) {
    for model in models {
        if let Some(stage) = stages.iter().find(|stage| stage.name == model.name) {
            problems
                .error(model.at, "duplicate-name", format!("`{}` is both a model and a stage", model.name))
                .help(format!("they share one namespace; the stage is on line {}", stage.at.line));
        }
    }
    for stage in stages.iter().filter(|stage| stage.name == "models") {
        problems.error(stage.at, "name", "a stage cannot be called `models`: `models.NAME` stands for a model");
    }
}

/// The map under `key`, empty when absent.
fn section(root: &Yaml, key: &str, problems: &mut Problems<'_>) -> Yaml {
    match root.get(key) {
        Some(value) if !value.is_null() && check_map(value, &format!("`{key}`"), problems) => value.clone(),
        _ => Yaml::empty_map(root.entry(key).map_or(root.at, |entry| entry.key_at)),
    }
}

fn named<T>(
    root: &Yaml,
    key: &str,
    what: &str,
    problems: &mut Problems<'_>,
    read: impl Fn(String, Span, Yaml, &mut Problems<'_>) -> Option<T>,
) -> Vec<T> {
    let section = section(root, key, problems);
    check_names(&section, what, problems);
    let mut found = Vec::new();
    for entry in section.entries() {
        if check_map(&entry.value, &format!("{what} `{}`", entry.key), problems) {
            found.extend(read(entry.key.clone(), entry.key_at, entry.value.clone(), problems));
        }
    }
    found
}

/// Names are words that selectors can be made of; those of models and kinds may hold dots.
fn check_names(section: &Yaml, what: &str, problems: &mut Problems<'_>) {
    let dots = matches!(what, "model" | "kind");
    for entry in section.entries() {
        if !is_name(&entry.key, dots) {
            let extra = if dots { " and dots" } else { "" };
            problems
                .error(entry.key_at, "name", format!("`{}` is no name for a {what}", entry.key))
                .help(format!("a name begins with a letter and holds letters, digits, `-`, `_`{extra}"));
        }
    }
}

/// Whether `text` is a name.
pub(crate) fn is_name(text: &str, dots: bool) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '-' || c == '_' || (dots && c == '.');
    text.chars().next().is_some_and(|c| c.is_alphabetic() || c == '_') && text.chars().all(part)
}

/// Reports keys of `map` that are not `known`.
pub(crate) fn check_keys(map: &Yaml, known: &[&str], whose: &str, problems: &mut Problems<'_>) {
    for entry in map.entries() {
        if !known.contains(&entry.key.as_str()) {
            problems
                .error(entry.key_at, "unknown-key", format!("`{}` is no key of {whose}", entry.key))
                .suggest(&entry.key, known.iter().copied());
        }
    }
}

/// Reports a value that is no map.
pub(crate) fn check_map(value: &Yaml, what: &str, problems: &mut Problems<'_>) -> bool {
    if !matches!(value.data, Data::Map(_)) {
        problems.error(value.at, "type", format!("{what} is a map, this is {}", value.what()));
    }
    value.is_map()
}

#[cfg(test)]
mod tests {
    use super::super::load::load;
    use super::super::source::SourceText;
    use super::*;

    #[test]
    fn the_skeleton_of_the_paper_is_read_in_both_profiles() {
        let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/full.skeleton.yaml");
        let Ok(text) = std::fs::read_to_string(&file) else {
            println!("skipped: needs ../shared/full.skeleton.yaml");
            return;
        };
        let source = SourceText::new(&file, text);
        for (profile, stages) in [("embedded", 16), ("paper", 15)] {
            let mut problems = Problems::new(&source);
            let root = load(&source, &mut problems).unwrap();
            let pipeline = read(root, Some(profile), &[], &mut problems).unwrap();
            assert_eq!(problems.into_found(), []);
            assert_eq!(pipeline.stages.len(), stages);
        }
    }
}
