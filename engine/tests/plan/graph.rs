//! Looking into a plan.

use mpcc_engine::plan::{NodeId, Plan, compile};
use petgraph::algo::is_cyclic_directed;

use crate::{fixtures, kinds, options};

fn mini() -> Plan {
    compile(&fixtures().join("mini.yaml"), &kinds::registry(), &options()).expect("it compiles")
}

fn names(plan: &Plan, ids: impl IntoIterator<Item = NodeId>) -> Vec<&str> {
    ids.into_iter().map(|id| plan.node(id).name.as_str()).collect()
}

fn select(plan: &Plan, wanted: &[&str]) -> Vec<String> {
    let wanted: Vec<String> = wanted.iter().map(|name| (*name).to_owned()).collect();
    let found = plan.select(&wanted).unwrap_or_else(|error| panic!("{error}"));
    names(plan, found).into_iter().map(str::to_owned).collect()
}

#[test]
fn needs_come_before_users() {
    let plan = mini();
    for id in plan.ids() {
        assert!(plan.node(id).parents().iter().all(|need| *need < id), "{}", plan.node(id).name);
        for user in plan.dependents(id) {
            assert!(plan.node(user).parents().contains(&id));
        }
    }
    let graph = plan.graph();
    assert_eq!(graph.node_count(), plan.nodes.len());
    assert!(!is_cyclic_directed(&graph));
}

#[test]
fn a_model_brings_the_node_that_makes_it() {
    let plan = mini();
    let filter = plan.find("filter[part=train]").unwrap();
    assert_eq!(names(&plan, plan.node(filter).parents()), ["world[part=train]", "pretrain", "regions[part=train]"]);
}

#[test]
fn selection_brings_what_is_needed() {
    let plan = mini();
    assert_eq!(select(&plan, &["regions[part=test]"]), ["world[part=test]", "regions[part=test]"]);
    assert_eq!(select(&plan, &["world"]).len(), 3);
    assert_eq!(select(&plan, &[]).len(), plan.nodes.len());
    assert_eq!(select(&plan, &["answer[method=sft]"]).iter().filter(|name| name.starts_with("answer")).count(), 2);
}

#[test]
fn a_plus_brings_what_depends_on_it() {
    let plan = mini();
    let below = select(&plan, &["dedup+"]);
    assert!(["tag", "count", "table"].iter().all(|name| below.contains(&(*name).to_owned())), "{below:?}");
    assert_eq!(
        select(&plan, &["score[split=full,method=base+sys]"]).last().unwrap(),
        "score[split=full,method=base+sys]"
    );
    assert!(select(&plan, &["score[split=full,method=base+sys]+"]).contains(&"table".to_owned()));
}

#[test]
fn unknown_names_are_answered_with_the_nearest() {
    let plan = mini();
    for (name, want) in [
        ("regoins", "the plan has no node `regoins`; did you mean `regions`?"),
        (
            "regions[part=pretrain]",
            "the plan has no node `regions[part=pretrain]`; did you mean `regions[part=train]`?",
        ),
        ("filter.regions", "`filter.regions` names the port `regions`, not a node; name a node without its port"),
        ("world[", "`world[` has `[` without `]`"),
    ] {
        assert_eq!(plan.select(&[name.to_owned()]).unwrap_err().to_string(), want);
    }
}
