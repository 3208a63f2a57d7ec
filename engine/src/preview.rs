//! What a run would do, without doing it: `mpcc plan` and `mpcc why`.
//!
//! | forecast | means |
//! |---|---|
//! | hit | the store has the outputs for the recipe, whole |
//! | run | the recipe is known and the store has nothing for it, with the reasons |
//! | unknown | it depends on what the named nodes will make: if they make the same bytes as before, it is a hit |
//!
//! Reasons compare the recipe with the node's latest one, kept in the store under the pipeline file and the node's name, and
//! with the one before that when the node is up to date: then `why` tells why it ran last.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mpcc_cache::{Change, Digest, Recipe, Store, StoreError};
use serde::Serialize;

use crate::asking::Asks;
use crate::asking::rehearsal::rehearse;
use crate::fingerprint::{Fingerprinter, KeyError, Numerics, Outputs, Resolved};
use crate::journal::{self, RunRecord};
use crate::plan::{Node, NodeId, Plan};
use crate::registry::Registry;
use crate::run::{Seal, Stand, names_of, node_key, previous_key};

/// What a run would do with a node.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Forecast {
    /// Nothing: its outputs are there.
    Hit,
    /// Execute it.
    Run {
        /// Why, the most telling reason first.
        reasons: Vec<Reason>,
    },
    /// Decide when these nodes have ended.
    Unknown {
        /// The nodes above it that will run.
        until: Vec<String>,
    },
}

/// Why a node must run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Reason {
    /// It never ran with this store.
    NoEntry,
    /// A field of its recipe differs from the latest one.
    Changed(Change),
    /// It was begun with this very recipe and did not finish.
    Unfinished,
    /// It finished with this very recipe, but an output is no longer in the store, or was damaged.
    ObjectMissing,
    /// It is to run whatever the store has.
    Forced,
    /// It says `cache: false`.
    NoCache,
    /// Something it needs is not there; a run would not begin.
    Missing {
        /// What.
        message: String,
    },
}

/// A node and what a run would do with it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Preview {
    /// The node.
    pub node: String,
    /// What a run would do.
    #[serde(flatten)]
    pub forecast: Forecast,
    /// Its recipe's digest, when that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe: Option<Digest>,
    /// What it would ask of models, or hand to its command record by record, when that can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asks: Option<Asks>,
    /// Seconds it took when it was last executed, when a journal tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expected_s: Option<f64>,
}

/// Why a node runs, or ran last.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Why {
    /// The node and what a run would do with it.
    #[serde(flatten)]
    pub preview: Preview,
    /// What differs, in the order of the recipe, the first telling most: of a node that will run, from its latest recipe
    /// to the one it has now; of a node that is up to date, from the recipe before its latest one.
    pub changes: Vec<Change>,
    /// Of a node that is unknown: the nodes above it that will run, with their reasons.
    pub above: Vec<Preview>,
}

/// What to look at, and how.
pub struct Look<'a> {
    /// These nodes, with everything above them.
    pub nodes: &'a BTreeSet<NodeId>,
    /// Nodes that are to run whatever the store has.
    pub forced: &'a BTreeSet<NodeId>,
    /// The numerics classes of hosts.
    pub numerics: Numerics,
    /// What an earlier run left; nodes that stand on it are not looked at.
    pub seal: Option<Seal>,
    /// With it, nodes that would ask models are rehearsed.
    pub registry: Option<&'a Registry>,
}

/// What a run would do with each node that `look` names, in plan order.
///
/// # Errors
/// The store cannot be read. Missing data is no error but a reason.
pub fn preview(plan: &Plan, store: &Store, look: Look<'_>) -> Result<Vec<Preview>, StoreError> {
    let stand = look.seal.map(|seal| seal.standing(plan, look.forced)).unwrap_or_default();
    let looker = Looker { stand, registry: look.registry, ..Looker::new(plan, store, look.forced, look.numerics) };
    Ok({ looker }.look_at_all(look.nodes)?.into_values().collect())
}

/// Why `node` would run, or ran last.
///
/// # Errors
/// The store cannot be read.
pub fn why(plan: &Plan, store: &Store, node: NodeId, numerics: Numerics) -> Result<Why, StoreError> {
    let nodes = plan.above([node].into());
    let mut previews = Looker::new(plan, store, &BTreeSet::new(), numerics).look_at_all(&nodes)?;
    let preview = previews.remove(&node).expect("it was looked at");
    let (mut changes, mut above) = (Vec::new(), Vec::new());
    match &preview.forecast {
        Forecast::Hit => changes = last_change(store, plan, &plan.nodes[node.0])?,
        Forecast::Run { reasons } => changes.extend(reasons.iter().filter_map(|reason| match reason {
            Reason::Changed(change) => Some(change.clone()),
            _ => None,
        })),
        Forecast::Unknown { until } => above.extend(previews.into_values().filter(|p| until.contains(&p.node))),
    }
    Ok(Why { preview, changes, above })
}

/// What changed between the two latest recipes of a node.
fn last_change(store: &Store, plan: &Plan, node: &Node) -> Result<Vec<Change>, StoreError> {
    let recipe = |key: String| {
        Ok::<_, StoreError>(match store.latest_recipe(&key)? {
            Some(digest) => read_recipe(store, &digest)?,
            None => None,
        })
    };
    let (old, new) = (recipe(previous_key(plan, node))?, recipe(node_key(plan, node))?);
    Ok(old.zip(new).map(|(old, new)| Recipe::diff(&old, &new)).unwrap_or_default())
}

/// A stored recipe, if it is still there.
fn read_recipe(store: &Store, digest: &Digest) -> Result<Option<Recipe>, StoreError> {
    match store.read_recipe(digest) {
        Ok(recipe) => Ok(Some(recipe)),
        Err(StoreError::Missing { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Looks at nodes in plan order, each after those above it.
struct Looker<'a> {
    plan: &'a Plan,
    store: &'a Store,
    forced: &'a BTreeSet<NodeId>,
    fingerprinter: Fingerprinter,
    durations: BTreeMap<String, f64>,
    last: Option<RunRecord>,
    /// The nodes that stand on the seal of an earlier run.
    stand: Stand,
    /// The kinds, if nodes are to be rehearsed.
    registry: Option<&'a Registry>,
    /// Outputs of the hits so far.
    outputs: Outputs,
    /// The nodes that will run, on which each node that is no hit depends; itself, when it runs.
    until: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

/// What is told of a node.
struct Outlook {
    forecast: Forecast,
    recipe: Option<Digest>,
    asks: Option<Asks>,
}

impl Outlook {
    fn of(forecast: Forecast) -> Self {
        Self { forecast, recipe: None, asks: None }
    }
}

impl<'a> Looker<'a> {
    fn new(plan: &'a Plan, store: &'a Store, forced: &'a BTreeSet<NodeId>, numerics: Numerics) -> Self {
        Self {
            fingerprinter: Fingerprinter::new(Arc::new(plan.clone()), store.clone(), numerics),
            durations: journal::durations(store.root(), &plan.file),
            // A journal that cannot be read tells nothing.
            last: journal::latest(store.root()).unwrap_or_default(),
            plan,
            store,
            forced,
            stand: Stand::default(),
            registry: None,
            outputs: Outputs::new(),
            until: BTreeMap::new(),
        }
    }

    fn look_at_all(&mut self, nodes: &BTreeSet<NodeId>) -> Result<BTreeMap<NodeId, Preview>, StoreError> {
        let nodes = self.plan.above(nodes.clone());
        nodes.into_iter().map(|id| Ok((id, self.look_at(id)?))).collect()
    }

    fn look_at(&mut self, id: NodeId) -> Result<Preview, StoreError> {
        let node = &self.plan.nodes[id.0];
        let Outlook { forecast, recipe, asks } = self.forecast(id, node)?;
        if let Forecast::Run { .. } = forecast {
            self.until.insert(id, [id].into());
        }
        let expected_s = self.durations.get(&node.name).copied();
        Ok(Preview { node: node.name.clone(), forecast, recipe, asks, expected_s })
    }

    fn forecast(&mut self, id: NodeId, node: &Node) -> Result<Outlook, StoreError> {
        if let Some(standing) = self.stand.get(id) {
            self.outputs.insert(id, standing.outputs.clone());
            return Ok(Outlook { recipe: Some(standing.recipe), ..Outlook::of(Forecast::Hit) });
        }
        let run = |reasons| Forecast::Run { reasons };
        let until: BTreeSet<NodeId> =
            node.data_parents().iter().filter_map(|parent| self.until.get(parent)).flatten().copied().collect();
        if !until.is_empty() {
            let names = until.iter().map(|id| self.plan.nodes[id.0].name.clone()).collect();
            self.until.insert(id, until);
            return Ok(Outlook::of(Forecast::Unknown { until: names }));
        }
        let missing = self.missing(node);
        if !missing.is_empty() {
            return Ok(Outlook::of(run(missing)));
        }
        let resolved = match self.fingerprinter.resolve(id, &self.outputs) {
            Ok(resolved) => resolved,
            Err(KeyError::Store(error)) => return Err(error),
            Err(error) => return Ok(Outlook::of(run(vec![Reason::Missing { message: error.to_string() }]))),
        };
        let digest = resolved.recipe.digest();
        let forecast = match self.own_reason(id, node) {
            Some(reason) => run(vec![reason]),
            None => match self.store.lookup_recent(&digest)? {
                Some(entry) => {
                    self.outputs.insert(id, entry.outputs.into_iter().collect());
                    Forecast::Hit
                }
                None => run(self.reasons(node, &resolved.recipe, &digest)?),
            },
        };
        let asks = match &forecast {
            Forecast::Run { .. } => self.rehearse(node, &resolved)?,
            _ => None,
        };
        Ok(Outlook { forecast, recipe: Some(digest), asks })
    }

    fn rehearse(&self, node: &Node, resolved: &Resolved) -> Result<Option<Asks>, StoreError> {
        let Some(registry) = self.registry else { return Ok(None) };
        // An input that is lost now is made again by the run; what would be asked then cannot be told.
        let Ok(inputs) = self.fingerprinter.bind(resolved) else { return Ok(None) };
        rehearse(node, inputs, self.store, registry)
    }

    fn missing(&self, node: &Node) -> Vec<Reason> {
        let names = names_of(node);
        let missing = self.plan.missing.iter().filter(|one| names.contains(&one.needed_by.as_str()));
        missing.map(|one| Reason::Missing { message: one.message.clone() }).collect()
    }

    fn own_reason(&self, id: NodeId, node: &Node) -> Option<Reason> {
        if self.forced.contains(&id) {
            return Some(Reason::Forced);
        }
        (!node.cache).then_some(Reason::NoCache)
    }

    fn reasons(&self, node: &Node, recipe: &Recipe, digest: &Digest) -> Result<Vec<Reason>, StoreError> {
        let Some(latest) = self.store.latest_recipe(&node_key(self.plan, node))? else {
            return Ok(vec![Reason::NoEntry]);
        };
        if latest == *digest {
            let ended = self.last.as_ref().and_then(|run| run.node(&node.name)).and_then(|record| record.recipe);
            return Ok(vec![if ended == Some(latest) { Reason::ObjectMissing } else { Reason::Unfinished }]);
        }
        let Some(old) = read_recipe(self.store, &latest)? else { return Ok(vec![Reason::NoEntry]) };
        Ok(Recipe::diff(&old, recipe).into_iter().map(Reason::Changed).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::tests::{Bench, diamond, set_word};

    fn states(plan: &Plan, bench: &Bench, forced: &[usize]) -> Vec<Forecast> {
        let nodes: BTreeSet<NodeId> = (0..plan.nodes.len()).map(NodeId).collect();
        let forced: BTreeSet<NodeId> = forced.iter().copied().map(NodeId).collect();
        let look = Look { nodes: &nodes, forced: &forced, numerics: bench.numerics(), seal: None, registry: None };
        let previews = preview(plan, &bench.store, look).unwrap();
        previews.into_iter().map(|preview| preview.forecast).collect()
    }

    fn unknown(until: &[&str]) -> Forecast {
        Forecast::Unknown { until: until.iter().map(|&name| name.to_owned()).collect() }
    }

    fn runs(reason: Reason) -> Forecast {
        Forecast::Run { reasons: vec![reason] }
    }

    #[tokio::test(start_paused = true)]
    async fn each_node_is_hit_run_or_unknown() {
        let (bench, mut plan) = (Bench::new(), diamond());
        assert_eq!(states(&plan, &bench, &[])[0], runs(Reason::NoEntry));
        bench.copy(&plan).await;
        assert_eq!(states(&plan, &bench, &[]), vec![Forecast::Hit; 4]);
        assert_eq!(states(&plan, &bench, &[1]), [Forecast::Hit, runs(Reason::Forced), Forecast::Hit, unknown(&["b"])]);
        set_word(&mut plan.nodes[1], "B");
        let change = Change { field: "params.word".to_owned(), old: Some("b".into()), new: Some("B".into()) };
        let expected = [Forecast::Hit, runs(Reason::Changed(change.clone())), Forecast::Hit, unknown(&["b"])];
        assert_eq!(states(&plan, &bench, &[]), expected);

        let told = why(&plan, &bench.store, NodeId(1), bench.numerics()).unwrap();
        assert_eq!(told.changes, std::slice::from_ref(&change));
        let told = why(&plan, &bench.store, NodeId(3), bench.numerics()).unwrap();
        assert_eq!((told.changes.len(), told.above[0].node.as_str()), (0, "b"));
        bench.copy(&plan).await;
        let told = why(&plan, &bench.store, NodeId(1), bench.numerics()).unwrap();
        assert_eq!((told.preview.forecast, told.changes), (Forecast::Hit, vec![change]), "it tells why it ran last");
        let told = why(&plan, &bench.store, NodeId(3), bench.numerics()).unwrap();
        assert_eq!(told.changes[0].field, "inputs.x[0].is");
    }

    #[tokio::test(start_paused = true)]
    async fn lost_and_unfinished_work_is_told_apart() {
        let (bench, plan) = (Bench::new(), diamond());
        bench.fail(&plan).await;
        assert_eq!(states(&plan, &bench, &[])[0], runs(Reason::Unfinished));
        bench.copy(&plan).await;
        bench.lose("b");
        let expected = [Forecast::Hit, runs(Reason::ObjectMissing), Forecast::Hit, unknown(&["b"])];
        assert_eq!(states(&plan, &bench, &[]), expected);
    }
}
