//! From the command line to a plan.

use std::collections::BTreeSet;
use std::path::Path;

use mpcc_engine::fingerprint::Numerics;
use mpcc_engine::plan::{CompileOptions, Plan, Source};
use mpcc_engine::resources::Inventory;

use crate::cli::ValueArgs;
use crate::environment;
use crate::report::Failure;
use crate::ui::complain;

/// Compiles a pipeline for this host; its warnings go to standard error.
pub(crate) fn compile(file: &Path, values: &ValueArgs) -> Result<Plan, Failure> {
    let host = inventory(values)?;
    let options = CompileOptions {
        profile: values.profile.clone(),
        sets: values.sets.iter().map(|(key, value)| (key.clone(), place(file, value))).collect(),
        env_present: environment::names(),
        gpus: Some(host.gpus.iter().map(|gpu| gpu.memory).collect()),
        // A node that asks for more CPUs than there are gets all of them; too little memory is a lack of this host, listed by
        // `plan` and refused by `run`, not a mistake of the pipeline.
        cpus: 0,
        memory: 0,
        hub_cache: environment::hub_cache(),
        executor: values.executor.clone(),
    };
    let plan = mpcc_engine::plan::compile(file, &mpcc_stages::registry(), &options)?;
    for warning in &plan.warnings {
        complain(warning);
    }
    Ok(plan)
}

/// A value from the command line that names something below the current folder is meant from there, as a shell user expects;
/// paths written in the file stay relative to the file.
fn place(file: &Path, value: &str) -> String {
    let beside = file.parent().unwrap_or(Path::new("")).join(value);
    match std::path::absolute(value) {
        Ok(here) if value.contains('/') && here.exists() && !beside.exists() => here.display().to_string(),
        _ => value.to_owned(),
    }
}

/// This host, or the one that `--inventory` states.
pub(crate) fn inventory(values: &ValueArgs) -> Result<Inventory, Failure> {
    match &values.inventory {
        Some(text) => Inventory::fake(text).map_err(Failure::wrong),
        None => Ok(Inventory::detect()),
    }
}

/// The numerics classes of `host`, or those that `--numerics` states.
pub(crate) fn numerics(values: &ValueArgs, host: &Inventory) -> Result<Numerics, Failure> {
    let mut classes = Numerics::of(host);
    for class in &values.numerics {
        match class.split_once('/') {
            Some(("cpu", _)) => classes.cpu = class.clone(),
            Some(("cuda", _)) => classes.gpu = class.clone(),
            _ => return Err(Failure::wrong(format_args!("`{class}` is no numerics class: write cpu/... or cuda/..."))),
        }
    }
    Ok(classes)
}

/// Names of the environment variables that hold secrets of this plan.
pub(crate) fn secrets(plan: &Plan) -> BTreeSet<String> {
    let declared = plan.nodes.iter().flat_map(|node| node.secrets.iter().cloned());
    let sources = plan.nodes.iter().flat_map(|node| node.inputs.iter().flat_map(|input| &input.sources));
    let keys = sources.filter_map(|source| match source {
        Source::Model(model) => model.settings.get("api_key_env")?.as_str().map(str::to_owned),
        _ => None,
    });
    declared.chain(keys).collect()
}
