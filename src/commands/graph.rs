//! `mpcc graph`: the pipeline as Graphviz or Mermaid text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

use mpcc_engine::plan::{Action, Node, NodeId, Plan};
use mpcc_engine::preview::{Forecast, Look, Preview, preview};
use mpcc_engine::resources::{Resources, format_size};

use super::{Answer, open};
use crate::cli::{GraphArgs, GraphFormat};
use crate::pipeline::{compile, inventory, numerics};
use crate::report::{DONE, Failure};
use crate::ui::dag::{self, Card, State};
use crate::ui::{reasons, say, seconds};

/// Prints the graph.
pub(super) fn graph(args: &GraphArgs, store: &Path) -> Answer {
    if let Some(file) = &args.svg {
        return picture(args, store, file);
    }
    let plan = compile(&args.pipeline.file, &args.pipeline.values)?;
    let drawing = if args.stages { stages(&plan) } else { nodes(&plan) };
    let text = match args.format {
        GraphFormat::Dot => dot(&plan.name, &drawing),
        GraphFormat::Mermaid => mermaid(&drawing),
    };
    say(text.trim_end());
    Ok(DONE)
}

/// Draws the picture.
fn picture(args: &GraphArgs, store: &Path, file: &Path) -> Answer {
    let plan = compile(&args.pipeline.file, &args.pipeline.values)?;
    let previews = previews(args, &plan, store)?;
    let groups: Vec<Vec<usize>> =
        if args.nodes { (0..plan.nodes.len()).map(|id| vec![id]).collect() } else { by_stage(&plan) };
    let groups = ordered(groups, &plan);
    let group_of = group_of(&groups, &plan);
    let cards: Vec<Card> = groups.iter().map(|group| card(&plan, &previews, group, args.nodes)).collect();
    let joined = edges(&plan).map(|(from, to)| (group_of[from], group_of[to]));
    // Stages may need each other crosswise, though nodes never do; a picture in layers shows one of both ways.
    let forward = joined.filter(|(from, to)| from < to).collect();
    let count = |state: State| previews.iter().filter(|preview| state_of(preview) == state).count();
    let heading = format!(
        "{}: {} nodes, {} up to date, {} will run, {} unknown until then",
        plan.name,
        plan.nodes.len(),
        count(State::Hit),
        count(State::Run),
        count(State::Unknown)
    );
    std::fs::write(file, dag::svg(&heading, &cards, &forward)).map_err(|error| Failure::io(file, &error))?;
    Ok(DONE)
}

/// What a run would do with each node. A store that is not there has nothing: everything would run.
fn previews(args: &GraphArgs, plan: &Plan, store: &Path) -> Result<Vec<Preview>, Failure> {
    if !store.is_dir() {
        let run = |node: &Node| Preview {
            node: node.name.clone(),
            forecast: Forecast::Run { reasons: Vec::new() },
            recipe: None,
            asks: None,
            expected_s: None,
        };
        return Ok(plan.nodes.iter().map(run).collect());
    }
    let numerics = numerics(&args.pipeline.values, &inventory(&args.pipeline.values)?)?;
    let (nodes, forced) = (plan.ids().collect(), BTreeSet::new());
    let look = Look { nodes: &nodes, forced: &forced, numerics, seal: None, registry: None };
    Ok(preview(plan, &open(store)?, look)?)
}

fn state_of(preview: &Preview) -> State {
    match preview.forecast {
        Forecast::Hit => State::Hit,
        Forecast::Run { .. } => State::Run,
        Forecast::Unknown { .. } => State::Unknown,
    }
}

/// The nodes of each stage, stages in the order of their first nodes.
fn by_stage(plan: &Plan) -> Vec<Vec<usize>> {
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (id, node) in plan.nodes.iter().enumerate() {
        let number = *numbers.entry(&node.stage).or_insert(groups.len());
        if number == groups.len() {
            groups.push(Vec::new());
        }
        groups[number].push(id);
    }
    groups
}

fn group_of(groups: &[Vec<usize>], plan: &Plan) -> Vec<usize> {
    let mut group_of = vec![0; plan.nodes.len()];
    for (number, group) in groups.iter().enumerate() {
        group.iter().for_each(|&id| group_of[id] = number);
    }
    group_of
}

/// The groups so that each comes after those it needs, as far as that can be; of several the first as told.
fn ordered(mut groups: Vec<Vec<usize>>, plan: &Plan) -> Vec<Vec<usize>> {
    let group_of = group_of(&groups, plan);
    let mut needs: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); groups.len()];
    for (from, to) in edges(plan).map(|(from, to)| (group_of[from], group_of[to])).filter(|(from, to)| from != to) {
        needs[to].insert(from);
    }
    let mut left: BTreeSet<usize> = (0..groups.len()).collect();
    let mut done = Vec::new();
    while let Some(first) = left.first().copied() {
        let next = left.iter().copied().find(|&group| needs[group].is_disjoint(&left)).unwrap_or(first);
        left.remove(&next);
        done.push(std::mem::take(&mut groups[next]));
    }
    done
}

fn card(plan: &Plan, previews: &[Preview], group: &[usize], alone: bool) -> Card {
    let first = &plan.nodes[group[0]];
    let count = if group.len() > 1 { format!(" x{}", group.len()) } else { String::new() };
    let name = if alone { first.name.clone() } else { format!("{}{count}", first.stage) };
    let known: Vec<f64> = group.iter().filter_map(|&id| previews[id].expected_s).collect();
    let took = (!known.is_empty()).then(|| seconds(known.iter().sum()));
    let detail: Vec<String> = took.into_iter().chain(asked(first)).collect();
    let lines = [kind(first).to_owned()].into_iter().chain((!detail.is_empty()).then(|| detail.join(", ")));
    Card {
        name,
        lines: lines.collect(),
        title: group.iter().map(|&id| about(&plan.nodes[id], &previews[id])).collect::<Vec<_>>().join("\n"),
        states: group.iter().map(|&id| state_of(&previews[id])).collect(),
    }
}

/// `2 GPUs`, when it asks for any.
fn asked(node: &Node) -> Option<String> {
    match node.resources.gpus {
        0 => None,
        1 => Some("1 GPU".to_owned()),
        gpus => Some(format!("{gpus} GPUs")),
    }
}

/// `sft[split=full]: will run (params.steps: 1 -> 2), took 12 s, 1 CPU, 4.0 GiB`.
fn about(node: &Node, preview: &Preview) -> String {
    let state = match &preview.forecast {
        Forecast::Hit => "up to date".to_owned(),
        Forecast::Run { reasons } => match reasons.first() {
            Some(reason) => format!("will run ({})", reasons::reason(reason)),
            None => "will run".to_owned(),
        },
        Forecast::Unknown { until } => format!("unknown until {}", until.join(", ")),
    };
    let took = preview.expected_s.map(|took| format!(", took {}", seconds(took))).unwrap_or_default();
    let Resources { cpus, memory, gpus, gpu_memory } = node.resources;
    let memory = if memory > 0 { format!(", {}", format_size(memory)) } else { String::new() };
    let each = if gpu_memory > 0 { format!(" with {} each", format_size(gpu_memory)) } else { String::new() };
    let gpus = if gpus > 0 { format!(", {gpus} GPU(s){each}") } else { String::new() };
    format!("{}: {state}{took}, {cpus} CPU(s){memory}{gpus}", node.name)
}

/// Boxes with their kinds, and edges between them by number.
struct Drawing {
    boxes: Vec<(String, String)>,
    edges: BTreeSet<(usize, usize)>,
}

fn nodes(plan: &Plan) -> Drawing {
    let boxes = plan.nodes.iter().map(|node| (node.name.clone(), kind(node).to_owned())).collect();
    let edges = edges(plan).collect();
    Drawing { boxes, edges }
}

fn stages(plan: &Plan) -> Drawing {
    let mut boxes: Vec<(String, String)> = Vec::new();
    let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &plan.nodes {
        *counts.entry(&node.stage).or_default() += 1;
        numbers.entry(&node.stage).or_insert_with(|| {
            boxes.push((node.stage.clone(), kind(node).to_owned()));
            boxes.len() - 1
        });
    }
    for (stage, _) in &mut boxes {
        let count = counts[stage.as_str()];
        if count > 1 {
            *stage = format!("{stage} x{count}");
        }
    }
    let number = |id: usize| numbers[plan.nodes[id].stage.as_str()];
    let edges = edges(plan).map(|(from, to)| (number(from), number(to))).filter(|(from, to)| from != to).collect();
    Drawing { boxes, edges }
}

fn edges(plan: &Plan) -> impl Iterator<Item = (usize, usize)> {
    let of = |(id, node): (usize, &Node)| {
        node.parents().into_iter().map(move |NodeId(parent)| (parent, id)).collect::<Vec<_>>()
    };
    plan.nodes.iter().enumerate().flat_map(of)
}

fn kind(node: &Node) -> &str {
    match &node.action {
        Action::Builtin { kind, .. } => kind,
        Action::Command(command) => command.kind.as_deref().unwrap_or("run"),
    }
}

fn dot(name: &str, drawing: &Drawing) -> String {
    let quote = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut text = format!("digraph {} {{\n  rankdir=LR;\n  node [shape=box, style=rounded];\n", quote(name));
    for (number, (label, kind)) in drawing.boxes.iter().enumerate() {
        let label = quote(&format!("{label}\n{kind}")).replace('\n', "\\n");
        let _ = writeln!(text, "  n{number} [label={label}];");
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  n{from} -> n{to};");
    }
    text + "}\n"
}

fn mermaid(drawing: &Drawing) -> String {
    let escape = |text: &str| text.replace('"', "#quot;");
    let mut text = "flowchart LR\n".to_owned();
    for (number, (label, kind)) in drawing.boxes.iter().enumerate() {
        let _ = writeln!(text, "  n{number}[\"{}<br/><small>{}</small>\"]", escape(label), escape(kind));
    }
    for (from, to) in &drawing.edges {
        let _ = writeln!(text, "  n{from} --> n{to}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawing() -> Drawing {
        let boxes = vec![("a".to_owned(), "run".to_owned()), ("b[x=\"1\"]".to_owned(), "k".to_owned())];
        Drawing { boxes, edges: BTreeSet::from([(0, 1)]) }
    }

    #[test]
    fn dot_quotes_labels() {
        let text = dot("demo", &drawing());
        assert!(text.contains(r#"n1 [label="b[x=\"1\"]\nk"];"#), "{text}");
        assert!(text.starts_with("digraph \"demo\" {") && text.contains("n0 -> n1;"), "{text}");
    }

    #[test]
    fn mermaid_quotes_labels() {
        let text = mermaid(&drawing());
        assert!(text.starts_with("flowchart LR\n") && text.contains("n0 --> n1"), "{text}");
        assert!(text.contains(r#"n1["b[x=#quot;1#quot;]<br/><small>k</small>"]"#), "{text}");
    }
}
