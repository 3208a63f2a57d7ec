//! `mpcc run`: bring a pipeline up to date.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mpcc_engine::cache::Store;
use mpcc_engine::event::{Event, Summary, What};
use mpcc_engine::executor::{Dispatch, Executor, ProcessExecutor, ProcessOptions};
use mpcc_engine::gpu::NvidiaSmi;
use mpcc_engine::journal::{self, RunRecord};
use mpcc_engine::plan::kept::Kept;
use mpcc_engine::plan::{LOCAL, NodeId, Plan, SelectError};
use mpcc_engine::run::{Control, RunOptions, Seal, unchanged};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver};

use super::{Answer, open, plan, remote};
use crate::cli::{PlanArgs, RunArgs};
use crate::environment;
use crate::invocation::Invocation;
use crate::pipeline::{Request, inventory, numerics, secrets};
use crate::report::{DONE, Failure};
use crate::slurm;
use crate::ui::{Reporter, complain, reporter, say, summary, tables};

/// Threads that hash, copy and publish at most: enough to keep a disk busy.
const BLOCKING: usize = 16;

/// Runs a pipeline; its exit code says how it went.
pub(super) fn run(args: RunArgs, store: &Path) -> Answer {
    if args.dry_run {
        let RunArgs { pipeline, nodes, force, json, .. } = args;
        return plan::plan(&PlanArgs { pipeline, nodes, force, json }, store);
    }
    let began = Instant::now();
    let request = Request::new(&args.pipeline)?;
    let kept = request.kept(store);
    if let Some(kept) = kept.as_ref().filter(|_| is_plain(&args))
        && let Some(seal) = request.seal(store, &kept.id()).filter(Seal::all_stand)
    {
        return up_to_date(&request, kept, &seal, store, began);
    }
    let (plan, id, store) = request.plan(kept.as_ref(), store)?;
    let seal = id.as_ref().and_then(|id| request.seal(store.root(), id));
    let (store, fetched) = remote::behind(store, args.remote.as_deref())?;
    let options = RunOptions { id, seal, ..options(&plan, &args)? };
    let executor = executor(&plan, &options, &args)?;
    let invocation = Invocation::new(&plan.file, &args.pipeline.values);
    let view = View { reporter: reporter(args.json), record: None, invocation, store: store.clone() };
    let runtime = tokio::runtime::Builder::new_multi_thread().max_blocking_threads(BLOCKING).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::machine(format_args!("no threads: {error}")))?;
    let (summary, view) = runtime.block_on(conduct(&plan, &store, options, &executor, view))?;
    if !args.json {
        close(&plan, &view);
        fetched.say();
    }
    Ok(summary.exit_code())
}

/// Whether a run of everything was asked for, for people to read.
fn is_plain(args: &RunArgs) -> bool {
    args.nodes.is_empty() && args.force.is_empty() && !args.json
}

/// A run that finds everything as the last one left it.
fn up_to_date(request: &Request<'_>, kept: &Kept, seal: &Seal, store: &Path, began: Instant) -> Answer {
    let wall_s = || began.elapsed().as_secs_f64();
    let done = unchanged(store, request.file(), seal, now(), wall_s)?;
    request.invocation().keep(store, &done.run).map_err(|error| Failure::io(store, &error))?;
    let profile = done.profile.as_ref().map(|profile| format!(", profile {profile}")).unwrap_or_default();
    say(format_args!("run {}: {}{profile}, {} nodes", done.run, done.pipeline, seal.total()));
    if seal.makes_tables()
        && let Some(plan) = kept.plan()
    {
        let record = journal::read(store, &done.run)?;
        tables::tables(&plan, &record, &open(store)?).into_iter().for_each(say);
    }
    say(summary::counts(&done.summary));
    Ok(DONE)
}

fn options(plan: &Plan, args: &RunArgs) -> Result<RunOptions, Failure> {
    let nodes = plan.select(&args.nodes)?;
    let forced =
        args.force.iter().map(|name| plan.matching(name)).collect::<Result<Vec<Vec<NodeId>>, SelectError>>()?;
    let host = inventory(&args.pipeline.values)?;
    Ok(RunOptions {
        forced: forced.into_iter().flatten().collect(),
        keep_going: args.keep_going,
        jobs: args.jobs,
        numerics: numerics(&args.pipeline.values, &host)?,
        ..RunOptions::new(nodes, host, now())
    })
}

#[allow(clippy::disallowed_methods, reason = "the program injects the clock that the engine does not read")]
fn now() -> jiff::Timestamp {
    jiff::Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

fn executor(plan: &Plan, options: &RunOptions, args: &RunArgs) -> Result<Dispatch, Failure> {
    let secrets = environment::for_children(&secrets(plan)).secrets;
    let grace = Duration::from_secs(args.grace);
    let mut executors = Dispatch::default();
    if let Some(executor) = slurm::executor(plan, options, &args.slurm, (&program()?, &secrets, grace))? {
        executors = executors.with(slurm::NAME, executor);
    }
    Ok(executors.with(LOCAL, process_executor(plan, grace)?))
}

fn program() -> Result<PathBuf, Failure> {
    std::env::current_exe().map_err(|error| Failure::machine(format_args!("where mpcc itself is: {error}")))
}

/// Executes stages of `plan` in processes of this host.
pub(super) fn process_executor(plan: &Plan, grace: Duration) -> Result<ProcessExecutor, Failure> {
    let environment = environment::for_children(&secrets(plan));
    let process = ProcessOptions {
        program: program()?,
        arguments: vec!["worker".into()],
        warden: vec!["warden".into()],
        environment: environment.open,
        secrets: environment.secrets,
        grace,
    };
    Ok(ProcessExecutor::new(process).with_gpu_meter(Arc::new(NvidiaSmi::default())))
}

/// Runs and shows until both are done.
async fn conduct(
    plan: &Plan,
    store: &Store,
    options: RunOptions,
    executor: &dyn Executor,
    view: View,
) -> Result<(Summary, View), Failure> {
    let (events, seen) = mpsc::unbounded_channel();
    let (control, orders) = mpsc::channel(2);
    let signals = tokio::spawn(pass_signals(control));
    let shown = tokio::spawn(view.show(seen));
    let ended = mpcc_engine::run::run(plan, store, options, executor, events, orders).await;
    signals.abort();
    let view = shown.await.map_err(|error| Failure::machine(format_args!("the display broke: {error}")))?;
    Ok((ended?, view))
}

/// The first SIGINT or SIGTERM drains, the second kills.
async fn pass_signals(control: mpsc::Sender<Control>) {
    let (Ok(mut interrupts), Ok(mut terminations)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    let mut order = Control::Drain;
    loop {
        tokio::select! {
            _ = interrupts.recv() => {}
            _ = terminations.recv() => {}
        }
        let hint = "stopping: running stages end in good order; again to kill them";
        complain(if order == Control::Drain { hint } else { "killing what runs" });
        if control.send(order).await.is_err() {
            return;
        }
        order = Control::Kill;
    }
}

/// What is seen of a run.
struct View {
    reporter: Box<dyn Reporter>,
    record: Option<RunRecord>,
    invocation: Invocation,
    store: Store,
}

impl View {
    async fn show(mut self, mut events: UnboundedReceiver<Event>) -> Self {
        while let Some(event) = events.recv().await {
            self.take(&event);
        }
        self
    }

    fn take(&mut self, event: &Event) {
        if let What::RunStarted { run, .. } = &event.what {
            self.record = RunRecord::begin(event);
            if let Err(error) = self.invocation.keep(self.store.root(), run) {
                complain(format_args!("warning: how this run was called is not kept: {error}"));
            }
        }
        if let Some(record) = &mut self.record {
            record.apply(event);
        }
        self.reporter.event(event);
    }
}

/// Prints the tables and the summary.
fn close(plan: &Plan, view: &View) {
    let Some(record) = &view.record else { return };
    for table in tables::tables(plan, record, &view.store) {
        say(table);
    }
    for line in summary::summary(record) {
        say(line);
    }
}
