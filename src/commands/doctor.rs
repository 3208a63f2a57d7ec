//! `mpcc doctor`: what this machine has, what is missing, and what to do about it.

use std::path::Path;

use mpcc_engine::plan::MissingKind;
use mpcc_engine::resources::{Inventory, format_size};
use serde_json::{Value, json};
use sysinfo::Disks;

use super::Answer;
use crate::cli::DoctorArgs;
use crate::environment::{find_program, hub_cache, variable};
use crate::pipeline::{compile, inventory};
use crate::report::{DONE, Failure};
use crate::ui::columns::columns;
use crate::ui::say;

/// Memory that the embedded profile of the whole paper stays under.
const MEMORY_ENOUGH: u64 = 3 << 30;
/// Free disk space that it stays under.
const DISK_ENOUGH: u64 = 5 << 30;

/// Keys that models and downloads commonly ask for.
const KEYS: [&str; 3] = ["OPENAI_API_KEY", "ANTHROPIC_API_KEY", "HF_TOKEN"];

/// One thing that was looked at.
struct Finding {
    what: &'static str,
    found: String,
    /// What to do, when something should be done.
    advice: Option<String>,
    data: Value,
}

/// Prints the findings.
pub(super) fn doctor(args: &DoctorArgs, store: &Path) -> Answer {
    let host = inventory(&args.values)?;
    let mut findings = vec![cpus(&host), memory(&host), disk(store), gpus(&host), slurm(), keys(), hub()];
    if let Some(file) = &args.file {
        findings.push(asked_for(file, args, &host)?);
    }
    if args.json {
        let fields = findings.iter().map(|one| (one.what.to_owned(), json!({"found": one.data, "advice": one.advice})));
        say(Value::Object(fields.collect()));
        return Ok(DONE);
    }
    let rows: Vec<Vec<String>> = findings.iter().map(|one| vec![one.what.to_owned(), one.found.clone()]).collect();
    say(columns(&rows));
    let advice: Vec<String> =
        findings.iter().filter_map(|one| Some(format!("  {}: {}", one.what, one.advice.as_ref()?))).collect();
    say(if advice.is_empty() { "\nnothing to do".to_owned() } else { format!("\nto do:\n{}", advice.join("\n")) });
    Ok(DONE)
}

fn cpus(host: &Inventory) -> Finding {
    Finding {
        what: "CPUs",
        found: format!("{}, level {} (results are equal bit for bit on one level)", host.cpus, host.level),
        advice: None,
        data: json!({"count": host.cpus, "level": host.level}),
    }
}

fn memory(host: &Inventory) -> Finding {
    let little = host.memory < MEMORY_ENOUGH;
    Finding {
        what: "memory",
        found: format_size(host.memory),
        advice: little.then(|| format!("the full pipeline wants {}; run it with --jobs 1", format_size(MEMORY_ENOUGH))),
        data: json!({"bytes": host.memory}),
    }
}

/// Free space where the store is, or would be.
fn disk(store: &Path) -> Finding {
    let disks = Disks::new_with_refreshed_list().ok();
    let holding = disks.iter().flat_map(|disks| disks.iter()).filter(|disk| store.starts_with(disk.mount_point()));
    let nearest = holding.max_by_key(|disk| disk.mount_point().as_os_str().len());
    let free = nearest.map(|disk| disk.available_space());
    let little = free.is_some_and(|free| free < DISK_ENOUGH);
    let path = store.display();
    Finding {
        what: "disk",
        found: free
            .map_or_else(|| "unknown".to_owned(), |free| format!("{} free for the store at {path}", format_size(free))),
        advice: little
            .then(|| "free some space, `mpcc cache gc`, or place the store elsewhere with --store".to_owned()),
        data: json!({"free_bytes": free, "store": store}),
    }
}

fn gpus(host: &Inventory) -> Finding {
    let names: Vec<String> =
        host.gpus.iter().map(|gpu| format!("{}: {} {}", gpu.ordinal, gpu.name, format_size(gpu.memory))).collect();
    let none = "none; the paper profile of the pipelines needs one, the embedded profile does not";
    Finding {
        what: "GPUs",
        found: if names.is_empty() { "none".to_owned() } else { names.join("; ") },
        advice: names.is_empty().then(|| none.to_owned()),
        data: json!(host.gpus),
    }
}

fn slurm() -> Finding {
    let found = find_program("sbatch");
    Finding {
        what: "Slurm",
        found: found.as_ref().map_or_else(|| "not found".to_owned(), |path| path.display().to_string()),
        advice: None,
        data: json!(found),
    }
}

/// Whether keys are there; never what they are.
fn keys() -> Finding {
    let present: Vec<(&str, bool)> = KEYS.iter().map(|name| (*name, variable(name).is_some())).collect();
    let word = |(name, is_set): &(&str, bool)| format!("{name} {}", if *is_set { "set" } else { "not set" });
    Finding {
        what: "API keys",
        found: present.iter().map(word).collect::<Vec<_>>().join(", "),
        advice: None,
        data: present
            .iter()
            .map(|(name, is_set)| ((*name).to_owned(), json!(is_set)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

fn hub() -> Finding {
    let folder = hub_cache().filter(|folder| folder.is_dir());
    Finding {
        what: "models",
        found: folder
            .as_ref()
            .map_or_else(|| "none downloaded".to_owned(), |folder| format!("in {}", folder.display())),
        advice: None,
        data: json!(folder),
    }
}

/// What a pipeline asks for that is not there.
fn asked_for(file: &Path, args: &DoctorArgs, host: &Inventory) -> Result<Finding, Failure> {
    let plan = compile(file, &args.values)?;
    let kind = |kind| match kind {
        MissingKind::Data => "data",
        MissingKind::Key => "key",
        MissingKind::Device => "device",
    };
    let mut missing: Vec<String> =
        plan.missing.iter().map(|one| format!("{} for {}: {}", kind(one.what), one.needed_by, one.message)).collect();
    let unfit = plan
        .nodes
        .iter()
        .filter(|node| node.is_local())
        .filter_map(|node| Some(format!("{} {}", node.name, host.fits(&node.resources).err()?)));
    missing.extend(unfit);
    Ok(Finding {
        what: "pipeline",
        found: if missing.is_empty() {
            "has all it asks for".to_owned()
        } else {
            format!("lacks {} things", missing.len())
        },
        advice: (!missing.is_empty()).then(|| missing.join("\n    ")),
        data: json!(missing),
    })
}
