//! One thin file a command: from what was typed to what the engine offers, and its answer to lines.

mod audit;
mod cache;
mod doctor;
mod graph;
mod init;
mod logs;
mod model;
mod plan;
#[cfg(feature = "remote")]
mod remote;
#[cfg(not(feature = "remote"))]
#[path = "no_remote.rs"]
mod remote;
mod run;
mod runs;
mod schema;
mod shell;
mod show;
mod simulate;
mod status;
mod trace;
mod why;

use std::path::{Path, PathBuf};

use mpcc_engine::cache::{Locking, Store, StoreOptions};
use mpcc_engine::executor::warden::warden_main;
use mpcc_engine::journal::{self, RunRecord};
use mpcc_engine::worker::{start_main, worker_main};

pub(crate) use model::ModelArgs;
pub(crate) use status::word;

use crate::cli::{Cli, Command};
use crate::environment;
use crate::report::Failure;

/// What a command answers: an exit code.
type Answer = Result<u8, Failure>;

/// Does what was typed.
pub(crate) fn dispatch(cli: Cli) -> Answer {
    let store = std::path::absolute(&cli.store).map_err(|error| Failure::io(&cli.store, &error))?;
    match cli.command {
        Command::Run(args) => run::run(args, &store),
        Command::Plan(args) => plan::plan(&args, &store),
        Command::Audit(args) => audit::audit(&args, &store),
        Command::Why(args) => why::why(&args, &store),
        Command::Graph(args) => graph::graph(&args, &store),
        Command::Status(args) => status::status(&args, &store),
        Command::Logs(args) => logs::logs(&args, &store),
        Command::Runs(args) => runs::runs(&args.command, &store),
        Command::Simulate(args) => simulate::simulate(&args, &store),
        Command::Trace(args) => trace::trace(&args, &store),
        Command::Show(args) => show::show(&args, &store),
        Command::Cache(args) => cache::cache(&args.command, &store),
        Command::Model(args) => model::model(&args.command),
        Command::Schema => schema::schema(),
        Command::Doctor(args) => doctor::doctor(&args, &store),
        Command::Init(args) => init::init(&args),
        Command::Completions(args) => shell::completions(&args),
        Command::Man => shell::man(),
        Command::Warden => Ok(u8::try_from(warden_main()).unwrap_or(u8::MAX)),
        Command::Worker { job, claim } => {
            let main = if claim { start_main } else { worker_main };
            let code = main(&job, &mpcc_stages::registry(), &environment::secrets());
            Ok(u8::try_from(code).unwrap_or(u8::MAX))
        }
    }
}

/// Opens the store, creating it when there is none.
pub(crate) fn open(store: &Path) -> Result<Store, Failure> {
    Ok(Store::open(store, StoreOptions { locking: locking()?, ..StoreOptions::default() })?)
}

/// How `MPCC_LEASES` wants the store locked; docs/cache.md, "On NFS".
fn locking() -> Result<Locking, Failure> {
    match environment::variable("MPCC_LEASES").as_deref() {
        None => Ok(Locking::Auto),
        Some("heartbeat") => Ok(Locking::HEARTBEAT),
        Some("locks") => Ok(Locking::Kernel),
        Some(other) => Err(Failure::wrong(format_args!("MPCC_LEASES is `{other}`; it may be `heartbeat` or `locks`"))),
    }
}

/// Opens a store that must be there: commands that only look create none.
fn open_existing(store: &Path) -> Result<Store, Failure> {
    if store.is_dir() { open(store) } else { Err(no_store(store)) }
}

fn no_store(store: &Path) -> Failure {
    let path = store.display();
    Failure::wrong(format_args!(
        "there is no store at {path}; `mpcc run` makes one, `--store` or MPCC_STORE names another"
    ))
}

/// The run that `id` names, or the last one (`last`, or nothing).
fn find_run(store: &Path, id: Option<&str>) -> Result<RunRecord, Failure> {
    let run = match id.filter(|id| *id != "last") {
        Some(id) => Some(journal::read(store, id)?),
        None => journal::latest(store)?,
    };
    let nothing = || Failure::wrong(format_args!("the store at {} has seen no run yet", store.display()));
    run.ok_or_else(|| if store.is_dir() { nothing() } else { no_store(store) })
}

/// A name that a run has no node for.
fn no_node(run: &RunRecord, name: &str) -> Failure {
    let names: Vec<&str> = run.nodes.iter().map(|node| node.header.node.as_str()).collect();
    let hint = nearest(name, &names).map(|nearest| format!("; did you mean `{nearest}`?")).unwrap_or_default();
    Failure::wrong(format_args!("run {} has no node `{name}`{hint}", run.id))
}

/// The known name that starts like `name`, or shares most of it.
fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let common = |other: &str| name.chars().zip(other.chars()).take_while(|(a, b)| a == b).count();
    let best = known.iter().copied().max_by_key(|other| common(other))?;
    (common(best) >= 2).then_some(best)
}

/// A path as people type it: relative to the current folder when it is below it.
fn shown(path: &Path) -> PathBuf {
    let below = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    below.unwrap_or_else(|| path.to_owned())
}
