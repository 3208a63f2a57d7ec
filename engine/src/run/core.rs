//! The loop: messages in, scheduler, commands out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mpcc_cache::Store;
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::attempt::Live;
use super::needs::names_of;
use super::reserve::reserve;
use super::seal::{Sealing, withdraw};
use super::step::{CommitError, Found, Key, Prepared, Shared};
use super::{Control, RunError, RunOptions};
use crate::event::{Event, Summary, What};
use crate::executor::{Executor, Notes};
use crate::fingerprint::{Fingerprinter, KeyError, Numerics};
use crate::job::{AttemptId, Outcome, Usage};
use crate::journal::{Journal, Past, past};
use crate::plan::kept::PlanId;
use crate::plan::{Action, Node, NodeId, Plan};
use crate::resources::{Inventory, Unfit};
use crate::scheduler::{Command, Input, Keyed, Scheduler, State, Task};
use crate::stage::{Note, Spent};

/// Keying, or taking outputs, that lasts longer holds no other node back.
pub(super) const SLOW: Duration = Duration::from_millis(100);

/// Nodes that are keyed at once: enough to keep a disk busy while one of them hashes a data set.
const LANES: usize = 4;

/// How often the lease of a node that another run executes is tried.
const FOLLOW: Duration = Duration::from_millis(100);

/// What arrives in the inbox.
pub(super) enum Message {
    Keyed(NodeId, Result<(Key, Option<Found>), KeyError>),
    /// Keying of these began a while ago.
    Slow(Vec<NodeId>),
    Prepared(NodeId, Result<Prepared, KeyError>),
    Ended(NodeId, Outcome, Usage),
    Committed(NodeId, Result<Found, CommitError>, Usage),
    Freed(NodeId),
    Rested(NodeId),
    /// A blocking step panicked; so does the loop.
    Panicked(tokio::task::JoinError),
}

/// The nodes that are to be keyed, and how many threads take from them.
#[derive(Default)]
struct Lanes {
    due: VecDeque<NodeId>,
    busy: usize,
}

/// A run that is going on.
pub(super) struct Run<'a> {
    pub(super) shared: Arc<Shared>,
    pub(super) scheduler: Scheduler,
    pub(super) executor: &'a dyn Executor,
    pub(super) notes: Notes,
    pub(super) keys: BTreeMap<NodeId, Arc<Key>>,
    lanes: Arc<Mutex<Lanes>>,
    /// Which plan it is.
    plan_id: Option<PlanId>,
    numerics: Numerics,
    pub(super) live: BTreeMap<NodeId, Live>,
    pub(super) attempts: BTreeMap<AttemptId, NodeId>,
    /// Dropping it ends what waits.
    pub(super) tasks: JoinSet<()>,
    pub(super) inbox: UnboundedSender<Message>,
    /// A failure of the machine rather than of a stage was seen.
    pub(super) machine: bool,
    pub(super) inventory: Inventory,
    pub(super) journal: Journal,
    pub(super) events: UnboundedSender<Event>,
    pub(super) began: Instant,
    pub(super) past: Past,
    /// What the attempts that are over have spent.
    pub(super) spent: BTreeMap<NodeId, Spent>,
    pub(super) stopped: bool,
    pub(super) finished: Option<Summary>,
}

/// Runs the plan's nodes that `options` name. Events go to `events` and into the journal; `control` stops the run. Answers when
/// every node has ended. Dropping the future kills what runs.
///
/// # Errors
/// Something that the run needs is not there, or its journal cannot be written. A failed stage is no error: see
/// [`Summary::exit_code`].
pub async fn run(
    plan: &Plan,
    store: &Store,
    options: RunOptions,
    executor: &dyn Executor,
    events: UnboundedSender<Event>,
    mut control: mpsc::Receiver<Control>,
) -> Result<Summary, RunError> {
    let nodes = plan.above(options.nodes.clone());
    check(plan, &nodes, &options.inventory)?;
    let (inbox, mut messages) = mpsc::unbounded_channel();
    let (notes, mut said) = mpsc::unbounded_channel();
    let mut run = Run::new(plan, store, &nodes, options, (executor, notes), (inbox, events))?;
    run.begin(&nodes)?;
    loop {
        if let Some(summary) = run.finished {
            run.seal(&nodes, &summary);
            return Ok(summary);
        }
        tokio::select! {
            biased;
            Some(control) = control.recv() => run.control(control)?,
            Some((attempt, note)) = said.recv() => run.note(attempt, note)?,
            message = messages.recv() => run.message(message.expect("the run holds a sender"), &mut said)?,
        }
    }
}

/// Refuses a run that lacks something.
fn check(plan: &Plan, nodes: &BTreeSet<NodeId>, inventory: &Inventory) -> Result<(), RunError> {
    let wanted: Vec<&Node> = nodes.iter().map(|id| &plan.nodes[id.0]).collect();
    let needed: BTreeSet<&str> = wanted.iter().flat_map(|node| names_of(node)).collect();
    let missing: Vec<_> = plan.missing.iter().filter(|one| needed.contains(one.needed_by.as_str())).cloned().collect();
    if !missing.is_empty() {
        return Err(RunError::Missing(missing));
    }
    let unfit = |node: &&&Node| Some((node.name.clone(), inventory.fits(&node.resources).err()?));
    let unfit: Vec<(String, Unfit)> =
        wanted.iter().filter(|node| node.is_local()).filter_map(|node| unfit(&node)).collect();
    if unfit.is_empty() { Ok(()) } else { Err(RunError::Unfit(unfit)) }
}

/// How long a node runs when no earlier run tells: training and generation are the long ones.
fn guess(node: &Node) -> Duration {
    match &node.action {
        Action::Builtin { numerics: true, .. } => Duration::from_secs(30),
        _ => Duration::from_secs(1),
    }
}

/// Keys nodes until none is due.
fn key_from(lanes: &Mutex<Lanes>, shared: &Shared, inbox: &UnboundedSender<Message>) {
    loop {
        let id = {
            let mut lanes = lanes.lock().expect("no panic while it is held");
            match lanes.due.pop_front() {
                Some(id) => id,
                None => {
                    lanes.busy -= 1;
                    return;
                }
            }
        };
        // The run is over when nobody receives.
        if inbox.send(Message::Keyed(id, shared.key(id))).is_err() {
            return;
        }
    }
}

/// What the scheduler must know of a node.
pub fn task(node: &Node, durations: &BTreeMap<String, f64>) -> Task {
    let known = durations.get(&node.name).and_then(|seconds| Duration::try_from_secs_f64(*seconds).ok());
    Task {
        parents: node.parents().into_iter().collect(),
        request: node.resources.clone(),
        remote: !node.is_local(),
        retries: node.retries,
        duration: known.unwrap_or_else(|| guess(node)),
    }
}

/// The same with what earlier runs have seen it hold.
fn reserved(node: &Node, durations: &BTreeMap<String, f64>, past: &Past, host: &Inventory) -> Task {
    let mut task = task(node, durations);
    // What a cluster is asked for is what the pipeline states.
    if !task.remote {
        task.request = reserve(&node.resources, &past.of(&node.name, &node.stage), host);
    }
    task
}

impl<'a> Run<'a> {
    fn new(
        plan: &Plan,
        store: &Store,
        nodes: &BTreeSet<NodeId>,
        mut options: RunOptions,
        (executor, notes): (&'a dyn Executor, Notes),
        (inbox, events): (UnboundedSender<Message>, UnboundedSender<Event>),
    ) -> Result<Self, RunError> {
        let past = past(store.root(), &plan.file);
        let durations = past.nodes.iter().map(|(node, seen)| (node.clone(), seen.wall_s)).collect();
        let stand = options.seal.take().map(|seal| seal.standing(plan, &options.forced)).unwrap_or_default();
        if options.id.is_some() && nodes.iter().any(|id| stand.get(*id).is_none()) {
            withdraw(store, &plan.file)?;
        }
        let journal = Journal::create(store.root(), options.started)?;
        let tasks = nodes.iter().map(|id| (*id, reserved(&plan.nodes[id.0], &durations, &past, &options.inventory)));
        let tasks = tasks.collect();
        let RunOptions { inventory, jobs, keep_going, .. } = &options;
        let scheduler = Scheduler::new(tasks, vec![inventory.clone()], *jobs, *keep_going);
        let plan = Arc::new(plan.clone());
        let shared = Shared {
            fingerprinter: Fingerprinter::new(plan.clone(), store.clone(), options.numerics.clone()),
            plan,
            store: store.clone(),
            forced: options.forced,
            stand,
            folder: journal.folder().to_owned(),
            outputs: Mutex::default(),
            folders: Mutex::default(),
            reused: AtomicU64::default(),
        };
        let mut run = Self {
            shared: Arc::new(shared),
            scheduler,
            executor,
            notes,
            keys: BTreeMap::new(),
            lanes: Arc::default(),
            plan_id: options.id,
            numerics: options.numerics,
            live: BTreeMap::new(),
            attempts: BTreeMap::new(),
            tasks: JoinSet::new(),
            inbox,
            machine: false,
            inventory: options.inventory,
            journal,
            events,
            began: Instant::now(),
            past,
            spent: BTreeMap::new(),
            stopped: false,
            finished: None,
        };
        run.say_started(nodes, options.started)?;
        Ok(run)
    }

    fn begin(&mut self, nodes: &BTreeSet<NodeId>) -> Result<(), RunError> {
        if nodes.is_empty() {
            return self.finish();
        }
        self.step(Input::Begin)
    }

    pub(super) fn name(&self, id: NodeId) -> String {
        self.shared.node(id).name.clone()
    }

    fn control(&mut self, control: Control) -> Result<(), RunError> {
        self.stopped = true;
        self.step(match control {
            Control::Drain => Input::Drain,
            Control::Kill => Input::Kill,
        })
    }

    fn note(&mut self, attempt: AttemptId, note: Note) -> Result<(), RunError> {
        let Some(&id) = self.attempts.get(&attempt) else { return Ok(()) };
        if let Some(live) = self.live.get_mut(&id) {
            live.hear(&note);
        }
        let node = self.name(id);
        self.say(What::NodeNote { node, note })
    }

    fn message(&mut self, message: Message, said: &mut UnboundedReceiver<(AttemptId, Note)>) -> Result<(), RunError> {
        match message {
            Message::Keyed(id, result) => self.keyed(id, result),
            Message::Slow(ids) => ids.into_iter().try_for_each(|id| self.step(Input::Slow(id))),
            Message::Prepared(id, result) => self.prepared(id, result),
            Message::Ended(id, outcome, usage) => {
                // What it said before it ended comes first.
                while let Ok((attempt, note)) = said.try_recv() {
                    self.note(attempt, note)?;
                }
                self.ended(id, outcome, usage)
            }
            Message::Committed(id, result, usage) => self.committed(id, result, usage),
            Message::Freed(id) => self.step(Input::Freed(id)),
            Message::Rested(id) => self.step(Input::Rested(id)),
            Message::Panicked(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    fn keyed(&mut self, id: NodeId, result: Result<(Key, Option<Found>), KeyError>) -> Result<(), RunError> {
        if self.scheduler.state(id) != Some(State::Keying) {
            return Ok(()); // Cancelled meanwhile.
        }
        self.say_damage(id)?;
        let keyed = match result {
            Ok((key, found)) => {
                let recipe = key.recipe;
                self.keys.insert(id, Arc::new(key));
                match found {
                    Some(found) => {
                        self.say_cached(id, recipe, found)?;
                        Keyed::Hit
                    }
                    None => Keyed::Miss,
                }
            }
            Err(error) => {
                self.say_failed(id, error.to_string(), error.is_machine(), 0, Usage::default())?;
                Keyed::Broken
            }
        };
        self.step(Input::Keyed(id, keyed))
    }

    /// Tells the scheduler and does what it answers.
    pub(super) fn step(&mut self, input: Input) -> Result<(), RunError> {
        let commands = self.scheduler.step(input);
        self.key(commands.iter().filter_map(|command| if let Command::Key(id) = command { Some(*id) } else { None }));
        commands.into_iter().try_for_each(|command| self.obey(command))
    }

    pub(super) fn obey(&mut self, command: Command) -> Result<(), RunError> {
        match command {
            // `step` has taken care of them, all at once.
            Command::Key(_) => {}
            Command::Start { node, attempt, grant } => self.prepare(node, attempt, grant),
            Command::Follow(id) => return self.follow(id),
            Command::Rest { node, delay, .. } => self.later(delay, Message::Rested(node)),
            Command::Drain(id) => self.order(id, crate::executor::Order::Drain),
            Command::Kill(id) => self.order(id, crate::executor::Order::Kill),
            Command::Settled { node, verdict, cause } => return self.settled(node, verdict, cause),
            Command::Finish => return self.finish(),
        }
        Ok(())
    }

    /// Runs a step on a blocking thread; its message comes back to the inbox.
    pub(super) fn blocking(&mut self, work: impl FnOnce(&Shared) -> Message + Send + 'static) {
        let (shared, inbox) = (self.shared.clone(), self.inbox.clone());
        self.tasks.spawn(async move {
            let message = tokio::task::spawn_blocking(move || work(&shared)).await.unwrap_or_else(Message::Panicked);
            // The run is over when nobody receives.
            let _ = inbox.send(message);
        });
    }

    /// Has these nodes keyed: a few threads take them one by one, so that ten thousand nodes cost no ten thousand tasks.
    pub(super) fn key(&mut self, ids: impl Iterator<Item = NodeId>) {
        let ids: Vec<NodeId> = ids.collect();
        if ids.is_empty() {
            return;
        }
        let more = {
            let mut lanes = self.lanes.lock().expect("no panic while it is held");
            lanes.due.extend(&ids);
            let more = LANES.saturating_sub(lanes.busy).min(lanes.due.len());
            lanes.busy += more;
            more
        };
        for _ in 0..more {
            let (shared, inbox, lanes) = (self.shared.clone(), self.inbox.clone(), self.lanes.clone());
            let lane = tokio::task::spawn_blocking(move || key_from(&lanes, &shared, &inbox));
            let inbox = self.inbox.clone();
            self.tasks.spawn(async move {
                if let Err(error) = lane.await {
                    let _ = inbox.send(Message::Panicked(error));
                }
            });
        }
        self.later(SLOW, Message::Slow(ids));
    }

    /// Leaves a seal when every node is up to date.
    fn seal(&self, nodes: &BTreeSet<NodeId>, summary: &Summary) {
        let Some(plan_id) = &self.plan_id else { return };
        if summary.executed + summary.cached != nodes.len() {
            return;
        }
        let (plan, mut sealing) = (&self.shared.plan, Sealing::new());
        let mut news = false;
        for id in plan.ids() {
            match self.keys.get(&id) {
                Some(key) if key.resolved.is_some() => {
                    news = true;
                    if let Some((outputs, watches)) = self.shared.watches(id, key) {
                        sealing.add(id, key.recipe, outputs, watches);
                    }
                }
                _ => sealing.keep(id, &self.shared.stand),
            }
        }
        let whole = nodes.len() == plan.nodes.len();
        if news || whole && !self.shared.stand.has_base {
            sealing.write(
                &self.shared.store,
                plan,
                plan_id,
                &self.numerics,
                if whole { self.journal.id() } else { "" },
            );
        }
    }

    pub(super) fn later(&mut self, delay: Duration, message: Message) {
        let inbox = self.inbox.clone();
        self.tasks.spawn(async move {
            tokio::time::sleep(delay).await;
            let _ = inbox.send(message);
        });
    }

    /// Waits until the lease of a node that another run executes is free.
    fn follow(&mut self, id: NodeId) -> Result<(), RunError> {
        let (store, inbox, recipe) = (self.shared.store.clone(), self.inbox.clone(), self.keys[&id].recipe);
        self.tasks.spawn(async move {
            loop {
                tokio::time::sleep(FOLLOW).await;
                let store = store.clone();
                let free = tokio::task::spawn_blocking(move || !matches!(store.lease(&recipe), Ok(None))).await;
                // A store that fails is found out by keying.
                if free.unwrap_or(true) {
                    break;
                }
            }
            let _ = inbox.send(Message::Freed(id));
        });
        let node = self.name(id);
        self.say(What::NodeElsewhere { node })
    }
}
