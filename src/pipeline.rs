//! From the command line to a plan: kept from an earlier call, or compiled.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use mpcc_engine::cache::Store;
use mpcc_engine::fingerprint::Numerics;
use mpcc_engine::plan::kept::{self, Kept, PlanId, PlanKey};
use mpcc_engine::plan::{CompileOptions, Plan, Source};
use mpcc_engine::resources::Inventory;
use mpcc_engine::run::Seal;

use crate::cli::{PipelineArgs, ValueArgs};
use crate::commands::open;
use crate::environment;
use crate::invocation::Invocation;
use crate::report::Failure;
use crate::ui::complain;

/// A pipeline file with all that decides its plan, before anything of it is read.
pub(crate) struct Request<'a> {
    args: &'a PipelineArgs,
    /// The file, absolute.
    file: PathBuf,
    options: CompileOptions,
    key: PlanKey,
}

impl<'a> Request<'a> {
    /// The pipeline that these arguments name.
    pub(crate) fn new(args: &'a PipelineArgs) -> Result<Self, Failure> {
        let options = options(&args.file, &args.values, None);
        let broken = |error: std::io::Error| Failure::io(&args.file, &error);
        let file = std::path::absolute(&args.file).map_err(broken)?;
        let key = PlanKey::new(&args.file, &options, &environment::program()).map_err(broken)?;
        Ok(Self { args, file, options, key })
    }

    /// The pipeline file, absolute.
    pub(crate) fn file(&self) -> &Path {
        &self.file
    }

    /// How it was called, for commands that plan it again.
    pub(crate) fn invocation(&self) -> Invocation {
        Invocation::new(&self.file, &self.args.values)
    }

    /// The seal that the last complete run left, if it was a run of the plan `id` on such a host.
    pub(crate) fn seal(&self, store: &Path, id: &PlanId) -> Option<Seal> {
        let values = &self.args.values;
        let cpu = numerics(values, &Inventory::without_gpus()).ok()?.cpu;
        let gpu = || {
            inventory(values).and_then(|host| numerics(values, &host)).map(|classes| classes.gpu).unwrap_or_default()
        };
        Seal::load(store, &self.file, id, &cpu, gpu)
    }

    /// The kept plan, if everything that it depends on is as it was.
    pub(crate) fn kept(&self, store: &Path) -> Option<Kept> {
        Kept::load(store, &self.key, || Some(memories(&inventory(&self.args.values).ok()?)))
    }

    /// The plan, `kept` or compiled, and the store at `root`, which is opened only once there is a plan.
    pub(crate) fn plan(&self, kept: Option<&Kept>, root: &Path) -> Result<(Plan, Option<PlanId>, Store), Failure> {
        if let Some((kept, plan)) = kept.and_then(|kept| Some((kept, kept.plan()?))) {
            return Ok((plan, Some(kept.id()), open(root)?));
        }
        let host = inventory(&self.args.values)?;
        let options = CompileOptions { gpus: Some(memories(&host)), ..self.options.clone() };
        let fresh = kept::compile(&self.args.file, &mpcc_stages::registry(), &options)?;
        warn(&fresh.plan);
        let store = open(root)?;
        fresh.keep(&store, &self.key);
        let id = fresh.id(self.key);
        Ok((fresh.plan, id, store))
    }
}

/// Compiles a pipeline for this host without a store; its warnings go to standard error.
pub(crate) fn compile(file: &Path, values: &ValueArgs) -> Result<Plan, Failure> {
    let options = options(file, values, Some(memories(&inventory(values)?)));
    let plan = mpcc_engine::plan::compile(file, &mpcc_stages::registry(), &options)?;
    warn(&plan);
    Ok(plan)
}

fn warn(plan: &Plan) {
    for warning in &plan.warnings {
        complain(warning);
    }
}

fn memories(host: &Inventory) -> Vec<u64> {
    host.gpus.iter().map(|gpu| gpu.memory).collect()
}

fn options(file: &Path, values: &ValueArgs, gpus: Option<Vec<u64>>) -> CompileOptions {
    CompileOptions {
        profile: values.profile.clone(),
        sets: values.sets.iter().map(|(key, value)| (key.clone(), place(file, value))).collect(),
        env_present: environment::names(),
        gpus,
        // A node that asks for more CPUs than there are gets all of them; too little memory is a lack of this host, listed by
        // `plan` and refused by `run`, not a mistake of the pipeline.
        cpus: 0,
        memory: 0,
        hub_cache: environment::hub_cache(),
        executor: values.executor.clone(),
    }
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
