//! Fields every stage may have: resources, retries, timeout, executor, cache, seed, publish, secrets.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::external::absolute;
use super::{CompileOptions, LOCAL, Missing, MissingKind};
use crate::interpolate::Scope;
use crate::port::OutputPort;
use crate::resources::Resources;
use crate::spec::pipeline::{check_keys, check_map};
use crate::spec::source::{Problems, Span};
use crate::spec::units::{bytes, seconds};
use crate::spec::yaml::{Data, Entry, Yaml};

const EXECUTORS: [&str; 2] = [LOCAL, "slurm"];
const RESOURCES: [&str; 4] = ["cpus", "memory", "gpus", "gpu_memory"];

/// The resolved fields of one node.
pub(super) struct Fields<'a> {
    /// The stage's fields as written.
    pub(super) written: &'a Yaml,
    /// What variables stand for.
    pub(super) scope: Scope<'a>,
}

impl Fields<'_> {
    fn get(&self, key: &str, problems: &mut Problems<'_>) -> Option<Yaml> {
        let value = self.written.get(key)?;
        self.scope.resolve(value, problems).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, want: &str, value: &Yaml, problems: &mut Problems<'_>) {
        let shown = value.shown();
        problems.error(value.at, "type", format!("`{key}` is {want}, this is {shown}"));
    }

    /// `description:`.
    pub(super) fn description(&self, problems: &mut Problems<'_>) -> Option<String> {
        let value = self.get("description", problems)?;
        if value.scalar_text().is_none() {
            self.wrong("description", "text", &value, problems);
        }
        value.scalar_text()
    }

    /// A whole number, `default` when absent.
    fn whole(&self, key: &str, most: u64, default: u64, problems: &mut Problems<'_>) -> u64 {
        let Some(value) = self.get(key, problems) else { return default };
        match value.to_json().as_u64().filter(|number| *number <= most) {
            Some(number) => number,
            None => {
                self.wrong(key, &format!("a whole number from 0 to {most}"), &value, problems);
                default
            }
        }
    }

    /// `retries:`.
    pub(super) fn retries(&self, problems: &mut Problems<'_>) -> u32 {
        self.whole("retries", 1000, 0, problems) as u32
    }

    /// `seed:`, or the pipeline's `seed` parameter, or 0.
    pub(super) fn seed(&self, problems: &mut Problems<'_>) -> u64 {
        let default = self.scope.params.get("seed").and_then(|seed| seed.to_json().as_u64()).unwrap_or(0);
        self.whole("seed", u64::MAX, default, problems)
    }

    /// `timeout:` in seconds, 0 for none.
    pub(super) fn timeout(&self, problems: &mut Problems<'_>) -> u64 {
        let Some(value) = self.get("timeout", problems) else { return 0 };
        match value.scalar_text().as_deref().and_then(seconds) {
            Some(seconds) => seconds,
            None => {
                self.wrong("timeout", "a duration such as 30s, 10m or 2h", &value, problems);
                0
            }
        }
    }

    /// `cache:`.
    pub(super) fn cache(&self, problems: &mut Problems<'_>) -> bool {
        let Some(value) = self.get("cache", problems) else { return true };
        if !matches!(value.data, Data::Bool(_)) {
            self.wrong("cache", "true or false", &value, problems);
        }
        value.data != Data::Bool(false)
    }

    /// `executor:`, or the caller's choice.
    pub(super) fn executor(&self, options: &CompileOptions, problems: &mut Problems<'_>) -> String {
        let Some(value) = self.get("executor", problems) else {
            return options.executor.as_deref().unwrap_or(LOCAL).to_owned();
        };
        let text = value.scalar_text().unwrap_or_default();
        if !EXECUTORS.contains(&text.as_str()) {
            let message = format!("there is no executor `{text}`");
            problems.error(value.at, "unknown-executor", message).suggest(&text, EXECUTORS);
        }
        text
    }

    /// `secrets:`, a list of names of environment variables.
    pub(super) fn secrets(
        &self,
        node: &str,
        options: &CompileOptions,
        missing: &mut Vec<Missing>,
        problems: &mut Problems<'_>,
    ) -> Vec<String> {
        let Some(value) = self.get("secrets", problems) else { return Vec::new() };
        let Data::List(items) = &value.data else {
            self.wrong("secrets", "a list of names of environment variables", &value, problems);
            return Vec::new();
        };
        let names: Vec<String> = items.iter().filter_map(|item| secret_name(item, problems)).collect();
        for name in names.iter().filter(|name| !options.env_present.contains(*name)) {
            let message = format!("environment variable {name} is not set");
            missing.push(Missing { what: MissingKind::Key, needed_by: node.to_owned(), message });
        }
        names
    }

    /// `resources:` over the kind's own.
    pub(super) fn resources(&self, base: Resources, problems: &mut Problems<'_>) -> Resources {
        let Some(value) = self.get("resources", problems) else { return base };
        over(base, &value, problems)
    }

    /// `publish:`, and the paths of `outputs:` in its long form: port -> (path, place).
    pub(super) fn publish(
        &self,
        outputs: &[OutputPort],
        declared: Option<&Yaml>,
        folder: &Path,
        problems: &mut Problems<'_>,
    ) -> BTreeMap<String, (PathBuf, Span)> {
        let mut paths = BTreeMap::new();
        for entry in declared.map(Yaml::entries).unwrap_or_default() {
            if let Some(path) = entry.value.get("path") {
                self.publish_one(&entry.key, path, folder, &mut paths, problems);
            }
        }
        let Some(publish) = self.written.get("publish").filter(|publish| publish.is_map()) else { return paths };
        for entry in publish.entries() {
            if outputs.iter().any(|port| port.name == entry.key) {
                self.publish_one(&entry.key, &entry.value, folder, &mut paths, problems);
            } else {
                let known = outputs.iter().map(|port| port.name.as_str());
                let message = format!("this stage has no output `{}`", entry.key);
                problems.error(entry.key_at, "unknown-port", message).suggest(&entry.key, known);
            }
        }
        paths
    }

    fn publish_one(
        &self,
        port: &str,
        path: &Yaml,
        folder: &Path,
        paths: &mut BTreeMap<String, (PathBuf, Span)>,
        problems: &mut Problems<'_>,
    ) {
        let Some(resolved) = self.scope.resolve(path, problems) else { return };
        match resolved.text().filter(|text| !text.trim().is_empty()) {
            Some(text) => {
                paths.insert(port.to_owned(), (absolute(folder, text), path.at));
            }
            None => self.wrong(port, "the path of a copy", &resolved.moved(path.at), problems),
        }
    }
}

fn secret_name(item: &Yaml, problems: &mut Problems<'_>) -> Option<String> {
    let name = item.text().filter(|name| is_env_name(name)).map(str::to_owned);
    if name.is_none() {
        problems.error(item.at, "secret", "a secret is the name of an environment variable");
    }
    name
}

/// Whether `name` can be the name of an environment variable.
pub(super) fn is_env_name(name: &str) -> bool {
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
    first && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `written` resources over `base`.
pub(super) fn over(base: Resources, written: &Yaml, problems: &mut Problems<'_>) -> Resources {
    if !check_map(written, "`resources`", problems) {
        return base;
    }
    check_keys(written, &RESOURCES, "`resources`", problems);
    let mut all = base;
    for entry in written.entries().iter().filter(|entry| !entry.value.is_null()) {
        let number = match entry.key.as_str() {
            "cpus" | "gpus" => count(entry, problems),
            "memory" | "gpu_memory" => size(entry, problems),
            _ => None,
        };
        match (entry.key.as_str(), number) {
            ("cpus", Some(number)) => all.cpus = number as u32,
            ("gpus", Some(number)) => all.gpus = number as u32,
            ("memory", Some(number)) => all.memory = number,
            ("gpu_memory", Some(number)) => all.gpu_memory = number,
            _ => {}
        }
    }
    all
}

fn count(entry: &Entry, problems: &mut Problems<'_>) -> Option<u64> {
    let least = u64::from(entry.key == "cpus");
    let number = entry.value.to_json().as_u64().filter(|number| (least..=100_000).contains(number));
    if number.is_none() {
        let message = format!("`{}` is a whole number from {least}, this is {}", entry.key, entry.value.shown());
        problems.error(entry.value.at, "type", message);
    }
    number
}

fn size(entry: &Entry, problems: &mut Problems<'_>) -> Option<u64> {
    let number = entry.value.scalar_text().as_deref().and_then(bytes);
    if number.is_none() {
        let message = format!("`{}` is a size", entry.key);
        problems.error(entry.value.at, "type", message).help("write 512MiB, 70GiB, or a number of bytes");
    }
    number
}

/// Reports what no host of this kind can give; what a host without enough GPUs lacks goes to `missing`.
pub(super) fn check_possible(
    stage: &str,
    node: &str,
    resources: &Resources,
    at: Span,
    options: &CompileOptions,
    missing: &mut Vec<Missing>,
    problems: &mut Problems<'_>,
) {
    if options.cpus > 0 && resources.cpus > options.cpus {
        let message = format!("stage `{stage}` asks for {} CPUs, this host has {}", resources.cpus, options.cpus);
        problems.error(at, "resources", message).help("lower `cpus`, or give the stage another `executor`");
    }
    if options.memory > 0 && resources.memory > options.memory {
        let (want, have) = (gib(resources.memory), gib(options.memory));
        let message = format!("stage `{stage}` asks for {want} of memory, this host has {have}");
        problems.error(at, "resources", message).help("lower `memory`, or give the stage another `executor`");
    }
    if let Some(devices) = &options.gpus {
        let fit = devices.iter().filter(|memory| **memory >= resources.gpu_memory).count();
        if (resources.gpus as usize) > fit {
            let of =
                if resources.gpu_memory > 0 { format!(" of {}", gib(resources.gpu_memory)) } else { String::new() };
            let message = format!("{} GPU(s){of} asked for, this host has {fit} such", resources.gpus);
            missing.push(Missing { what: MissingKind::Device, needed_by: node.to_owned(), message });
        }
    }
}

fn gib(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64)
}
