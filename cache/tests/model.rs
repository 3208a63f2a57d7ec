//! Random operations through two handles of one store, against plain maps.

use std::collections::{BTreeMap, BTreeSet};

use mpcc_cache::{Artifact, Digest, GcOptions, Keep, Store};
use proptest::prelude::*;

use crate::support::{World, fast_dir, flip, no_forks, object, put, put_tree, quiet, recipe};
use crate::workload::absorbing;

#[derive(Clone, Debug)]
enum Act {
    Put { content: u8 },
    Publish { recipe: u8, contents: Vec<u8> },
    Lookup { recipe: u8 },
    MemoPut { key: u8, value: Vec<u8> },
    MemoGet { key: u8 },
    SetLatest { node: u8, recipe: u8 },
    Damage { content: u8 },
    Locate { recipe: u8 },
    Reopen,
    Gc,
}

fn act() -> impl Strategy<Value = Act> {
    let contents = || prop::collection::vec(0..6u8, 1..4);
    prop_oneof![
        3 => (0..6u8).prop_map(|content| Act::Put { content }),
        5 => (0..4u8, contents()).prop_map(|(recipe, contents)| Act::Publish { recipe, contents }),
        5 => (0..4u8).prop_map(|recipe| Act::Lookup { recipe }),
        3 => (0..5u8, prop::collection::vec(any::<u8>(), 0..40)).prop_map(|(key, value)| Act::MemoPut { key, value }),
        3 => (0..5u8).prop_map(|key| Act::MemoGet { key }),
        2 => (0..3u8, 0..4u8).prop_map(|(node, recipe)| Act::SetLatest { node, recipe }),
        2 => (0..6u8).prop_map(|content| Act::Damage { content }),
        2 => (0..4u8).prop_map(|recipe| Act::Locate { recipe }),
        2 => Just(Act::Reopen),
        1 => Just(Act::Gc),
    ]
}

fn text(content: u8) -> String {
    format!("content {content}")
}

fn name(n: u8) -> mpcc_cache::Recipe {
    recipe(&n.to_string())
}

/// What should be true.
#[derive(Default)]
struct Expected {
    whole: BTreeSet<u8>,
    /// Recipe -> the content sets published for it, latest last.
    entries: BTreeMap<u8, Vec<Vec<u8>>>,
    memo: BTreeMap<u8, Vec<u8>>,
    latest: BTreeMap<u8, u8>,
}

impl Expected {
    fn publish(&mut self, recipe: u8, contents: Vec<u8>) {
        self.whole.extend(&contents);
        let entries = self.entries.entry(recipe).or_default();
        entries.retain(|other| *other != contents);
        entries.push(contents);
    }

    fn lookup(&self, recipe: u8) -> Option<&Vec<u8>> {
        let complete = |contents: &&Vec<u8>| contents.iter().all(|content| self.whole.contains(content));
        self.entries.get(&recipe)?.iter().rev().find(complete)
    }

    fn gc(&mut self) {
        let whole = self.whole.clone();
        let complete = |contents: &Vec<u8>| contents.iter().all(|content| whole.contains(content));
        self.entries.values_mut().for_each(|entries| entries.retain(complete));
        self.whole = self.entries.values().flatten().flatten().copied().collect();
    }
}

/// A recipe's outputs: each content as a file, and all of them as a tree.
fn outputs(store: &Store, contents: &[u8]) -> Vec<(String, Artifact)> {
    let texts: Vec<_> = contents.iter().enumerate().map(|(i, content)| (format!("f{i}"), text(*content))).collect();
    let tree: Vec<_> = texts.iter().map(|(path, content)| (path.as_str(), content.as_str())).collect();
    let mut outputs: Vec<_> = texts.iter().map(|(path, content)| (path.clone(), put(store, content))).collect();
    outputs.push(("tree".to_owned(), put_tree(store, &tree)));
    outputs
}

fn digests(contents: &[u8]) -> Vec<Digest> {
    contents.iter().map(|content| Digest::of(text(*content).as_bytes())).collect()
}

fn found(store: &Store, recipe: u8) -> Option<Vec<Digest>> {
    let entry = store.lookup(&name(recipe).digest()).unwrap()?;
    let files = entry.outputs.iter().filter(|(name, _)| name != "tree");
    Some(files.map(|(_, artifact)| artifact.digest).collect())
}

/// A handle that absorbs what closed ones wrote.
fn reopen(world: &World) -> Store {
    Store::open(&world.root(), absorbing(quiet())).unwrap()
}

fn apply(world: &World, stores: &mut Vec<Store>, handle: usize, act: Act, expected: &mut Expected) {
    let store = stores[handle].clone();
    match act {
        Act::Put { content } => {
            put(&store, &text(content));
            expected.whole.insert(content);
        }
        Act::Publish { recipe, contents } => {
            store.publish(&name(recipe), outputs(&store, &contents)).unwrap();
            expected.publish(recipe, contents);
        }
        Act::Lookup { recipe } => {
            assert_eq!(found(&store, recipe), expected.lookup(recipe).map(|contents| digests(contents)));
        }
        Act::MemoPut { key, value } => {
            // A key is a content key: what is there stays the only value.
            let value = expected.memo.entry(key).or_insert(value);
            store.memo().put("m", &Digest::of(&[key]), value).unwrap();
        }
        Act::MemoGet { key } => {
            assert_eq!(store.memo().get("m", &Digest::of(&[key])).as_ref(), expected.memo.get(&key));
        }
        Act::SetLatest { node, recipe } => {
            store.set_latest_recipe(&node.to_string(), &name(recipe).digest()).unwrap();
            expected.latest.insert(node, recipe);
        }
        Act::Damage { content } => {
            let path = object(store.root(), &Digest::of(text(content).as_bytes()));
            // Flipping the same bit twice would repair it.
            if expected.whole.remove(&content) {
                flip(&path);
            }
        }
        Act::Locate { recipe } => {
            let entry = store.lookup(&name(recipe).digest()).unwrap();
            let Some(entry) = entry else { return };
            let dir = store.locate(entry.output("tree").unwrap()).unwrap();
            for (i, content) in expected.lookup(recipe).unwrap().iter().enumerate() {
                assert_eq!(std::fs::read_to_string(dir.join(format!("f{i}"))).unwrap(), text(*content));
            }
        }
        Act::Reopen => stores[handle] = reopen(world),
        Act::Gc => {
            drop(store);
            stores.clear();
            world.store.gc(&GcOptions { keep: Keep::Everything, ..GcOptions::default() }).unwrap();
            stores.extend([reopen(world), reopen(world)]);
            expected.gc();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_handles_agree_with_plain_maps(acts in prop::collection::vec((0..2usize, act()), 1..40)) {
        let (world, _still) = (World::within(fast_dir()), no_forks());
        let mut stores = vec![reopen(&world), reopen(&world)];
        let mut expected = Expected::default();
        for (handle, act) in acts {
            apply(&world, &mut stores, handle, act, &mut expected);
        }
        let last = reopen(&world);
        for recipe in 0..4 {
            prop_assert_eq!(found(&last, recipe), expected.lookup(recipe).map(|contents| digests(contents)));
        }
        for (key, value) in &expected.memo {
            let found = last.memo().get("m", &Digest::of(&[*key]));
            prop_assert_eq!(found.as_ref(), Some(value));
        }
        for (node, recipe) in &expected.latest {
            prop_assert_eq!(last.latest_recipe(&node.to_string()).unwrap(), Some(name(*recipe).digest()));
        }
    }
}
