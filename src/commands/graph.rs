//! `mpcc graph`: the pipeline as Graphviz or Mermaid text.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use mpcc_engine::plan::{Action, Node, NodeId, Plan};

use super::Answer;
use crate::cli::{GraphArgs, GraphFormat};
use crate::pipeline::compile;
use crate::report::DONE;
use crate::ui::say;

/// Prints the graph.
pub(super) fn graph(args: &GraphArgs) -> Answer {
    let plan = compile(&args.pipeline.file, &args.pipeline.values)?;
    let drawing = if args.stages { stages(&plan) } else { nodes(&plan) };
    let text = match args.format {
        GraphFormat::Dot => dot(&plan.name, &drawing),
        GraphFormat::Mermaid => mermaid(&drawing),
    };
    say(text.trim_end());
    Ok(DONE)
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
