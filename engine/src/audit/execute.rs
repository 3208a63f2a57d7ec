//! One execution of a node for an audit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use mpcc_cache::Store;
use tokio::sync::mpsc::unbounded_channel;

use super::{AuditError, AuditOptions};
use crate::allocator::Allocator;
use crate::executor::Executor;
use crate::fingerprint::{Fingerprinter, KeyError, Resolved};
use crate::job::{Job, Outcome};
use crate::plan::{LOCAL, Node, NodeId, Plan};
use crate::run::job_of;

/// What an execution came to.
pub(super) struct Execution {
    pub(super) outcome: Outcome,
    pub(super) wall_s: f64,
    /// Where its outputs lie.
    pub(super) outputs: BTreeMap<String, PathBuf>,
    /// The folder of it all; the caller removes it.
    pub(super) folder: PathBuf,
}

/// A node to be executed.
pub(super) struct Executions<'a> {
    pub(super) plan: &'a Plan,
    pub(super) store: &'a Store,
    pub(super) fingerprinter: &'a Fingerprinter,
    pub(super) options: &'a AuditOptions,
    pub(super) executor: &'a dyn Executor,
    pub(super) id: NodeId,
    pub(super) resolved: &'a Resolved,
}

impl Executions<'_> {
    fn node(&self) -> &Node {
        self.plan.node(self.id)
    }

    /// Executes it once.
    pub(super) async fn execute(&self) -> Result<Execution, AuditError> {
        let node = self.node();
        let key = |source: KeyError| AuditError::Key { node: node.name.clone(), source };
        let unfit = |source| AuditError::Unfit { node: node.name.clone(), source };
        self.options.inventory.fits(&node.resources).map_err(unfit)?;
        let mut allocator = Allocator::new(std::slice::from_ref(&self.options.inventory), None);
        let grant = allocator.grant(&node.resources).expect("everything is free and it fits");
        let folder = self.store.scratch("audit")?;
        let devices = grant.devices.iter().map(|device| device.ordinal).collect();
        let job = self.job(folder.clone(), grant.cpus, devices).map_err(key)?;
        let outputs: BTreeMap<_, _> =
            job.outputs.iter().map(|(port, output)| (port.clone(), output.path.clone())).collect();
        // Nobody listens to its notes.
        let (notes, _) = unbounded_channel();
        let (outcome, usage) = self.executor.start(job, notes).await;
        allocator.release(grant);
        self.fingerprinter.recheck(self.resolved).map_err(key)?;
        Ok(Execution { outcome, wall_s: usage.wall_s, outputs, folder })
    }

    fn job(&self, folder: PathBuf, cpus: u32, devices: Vec<usize>) -> Result<Job, KeyError> {
        let node = self.node();
        let job = job_of(node, self.resolved, self.fingerprinter, self.store, folder)?;
        Ok(Job { threads: cpus as usize, devices, executor: LOCAL.to_owned(), fresh: true, ..job })
    }
}
