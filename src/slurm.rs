//! Slurm as the program sets it up: from the command line and the environment to an executor.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use mpcc_engine::executor::{SlurmExecutor, SlurmOptions};
use mpcc_engine::plan::Plan;
use mpcc_engine::run::RunOptions;

use crate::cli::SlurmArgs;
use crate::environment::{find_program, variable};
use crate::report::Failure;

/// The executor's name in pipeline files.
pub(crate) const NAME: &str = "slurm";

/// Variables that Slurm's own commands may read.
const FOR_SLURM: [&str; 9] = [
    "PATH",
    "HOME",
    "USER",
    "LOGNAME",
    "SLURM_CONF",
    "SLURM_CLUSTERS",
    "SBATCH_ACCOUNT",
    "SBATCH_PARTITION",
    "SBATCH_QOS",
];

/// An executor, when a node of the run asks for one.
///
/// # Errors
/// A node asks for it and there is no Slurm here.
pub(crate) fn executor(
    plan: &Plan,
    run: &RunOptions,
    args: &SlurmArgs,
    (program, secrets, grace): (&Path, &BTreeMap<String, String>, Duration),
) -> Result<Option<SlurmExecutor>, Failure> {
    let Some(node) = asks(plan, run) else { return Ok(None) };
    if find_program("sbatch").is_none() {
        return Err(Failure::machine(format_args!(
            "{node} asks for the executor `slurm`, but `sbatch` is not on the PATH; nothing has run"
        )));
    }
    let before = variable("MPCC_SLURM_OPTIONS").unwrap_or_default();
    let options = before.split_whitespace().map(str::to_owned).chain(args.options.iter().cloned()).collect();
    let mut environment = variables(FOR_SLURM.into_iter());
    environment.push(("LC_ALL".into(), "C".into()));
    Ok(Some(SlurmExecutor::new(SlurmOptions {
        program: program.to_owned(),
        options,
        environment,
        exported: variables(["PATH"].into_iter().chain(args.variables.iter().map(String::as_str))),
        secrets: secrets.clone(),
        grace,
        interval: Duration::from_secs_f64(args.poll),
        settle: Duration::from_secs_f64(args.settle),
        limit: args.limit as usize,
    })))
}

/// A node of the run, or one above it, that Slurm is to carry out.
fn asks<'a>(plan: &'a Plan, run: &RunOptions) -> Option<&'a str> {
    let mut wanted = run.nodes.clone();
    let mut open: Vec<_> = wanted.iter().copied().collect();
    while let Some(id) = open.pop() {
        let above = plan.nodes[id.0].parents();
        open.extend(above.iter().copied().filter(|parent| wanted.insert(*parent)));
    }
    let nodes = wanted.iter().map(|id| &plan.nodes[id.0]);
    nodes.into_iter().find(|node| node.executor == NAME).map(|node| node.name.as_str())
}

/// Those of `names` that are set.
fn variables<'a>(names: impl Iterator<Item = &'a str>) -> Vec<(OsString, OsString)> {
    names.filter_map(|name| Some((name.into(), variable(name)?.into()))).collect()
}
