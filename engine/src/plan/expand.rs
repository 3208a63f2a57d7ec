//! Matrix expansion: from stages to drafts of nodes.
//!
//! The lists of a matrix and its `rows` multiply, in the order written; `rows` is one axis whose every step sets several
//! keys. A node is named by the values of the lists and, of a row, of its first key. What `exclude` or `when` removes
//! stays in the list, marked, so that a reference to it can be answered with why it is not there.

use crate::interpolate::Scope;
use crate::spec::pipeline::{Pipeline, StageSpec, check_map, is_name};
use crate::spec::source::{Problems, Span};
use crate::spec::yaml::{Data, Entry, Yaml};

/// Most nodes of one pipeline.
const MAX_NODES: usize = 100_000;

/// A node to be.
pub(super) struct Draft {
    /// Index of its stage.
    pub(super) stage: usize,
    /// Its name.
    pub(super) name: String,
    /// Its coordinates.
    pub(super) coords: Vec<(String, Yaml)>,
    /// Why there will be no such node.
    pub(super) gone: Option<Gone>,
}

/// Why a node is not there.
#[derive(Clone, Copy)]
pub(super) enum Gone {
    /// `exclude`, at this place.
    Excluded(Span),
    /// `when`, at this place.
    When(Span),
}

/// Every node of every stage, in order.
pub(super) fn drafts(pipeline: &Pipeline, params: &Yaml, problems: &mut Problems<'_>) -> Vec<Draft> {
    let mut drafts: Vec<Draft> = Vec::new();
    for (index, stage) in pipeline.stages.iter().enumerate() {
        let off = is_off(stage, params, problems);
        let points = points(stage, params, problems);
        if drafts.len() + points.len() > MAX_NODES {
            let message = format!("the pipeline has more than {MAX_NODES} nodes from here on");
            problems.error(stage.at, "too-large", message);
            return drafts;
        }
        let excluded = exclusions(stage, params, problems);
        for point in points {
            let name = node_name(&stage.name, &point);
            let coords: Vec<(String, Yaml)> = point.into_iter().map(|(_, key, value)| (key, value)).collect();
            let hit = excluded.iter().find(|(_, rule)| matches(rule, &coords)).map(|(at, _)| Gone::Excluded(*at));
            drafts.push(Draft { stage: index, name, coords, gone: off.map(Gone::When).or(hit) });
        }
    }
    check_unique(&drafts, pipeline, problems);
    drafts
}

/// One coordinate: whether it is part of the name, its key, its value.
type Coordinate = (bool, String, Yaml);

fn node_name(stage: &str, point: &[Coordinate]) -> String {
    let shown: Vec<String> = point
        .iter()
        .filter(|(named, ..)| *named)
        .map(|(_, key, value)| format!("{key}={}", value.scalar_text().unwrap_or_default()))
        .collect();
    if shown.is_empty() { stage.to_owned() } else { format!("{stage}[{}]", shown.join(",")) }
}

/// The points of a stage's matrix; one empty point without a matrix.
fn points(stage: &StageSpec, params: &Yaml, problems: &mut Problems<'_>) -> Vec<Vec<Coordinate>> {
    let matrix = stage.fields.get("matrix").map(Yaml::entries).unwrap_or_default();
    let mut points: Vec<Vec<Coordinate>> = vec![Vec::new()];
    let rows = matrix.iter().find(|entry| entry.key == "rows");
    for axis in matrix.iter().filter(|entry| entry.key != "exclude" && entry.key != "rows") {
        let values = list_axis(axis, params, problems);
        points = product(&points, &values, |value| vec![(true, axis.key.clone(), value.clone())]);
        if points.len() > MAX_NODES {
            return points;
        }
    }
    match rows {
        Some(rows) => with_rows(points, rows, matrix, params, problems),
        None => points,
    }
}

fn product<T>(points: &[Vec<Coordinate>], steps: &[T], more: impl Fn(&T) -> Vec<Coordinate>) -> Vec<Vec<Coordinate>> {
    let room = MAX_NODES / steps.len().max(1) + 1;
    let pairs = points.iter().take(room).flat_map(|point| steps.iter().map(move |step| (point, step)));
    pairs.map(|(point, step)| [point.clone(), more(step)].concat()).collect()
}

fn list_axis(axis: &Entry, params: &Yaml, problems: &mut Problems<'_>) -> Vec<Yaml> {
    if !is_name(&axis.key, false) {
        problems.error(axis.key_at, "name", format!("`{}` is no name for a matrix key", axis.key));
    }
    let Some(resolved) = Scope::params(params).resolve(&axis.value, problems) else { return Vec::new() };
    let Data::List(values) = resolved.data else {
        let message = format!("`{}` is a list of values, this is {}", axis.key, resolved.what());
        problems.error(axis.value.at, "matrix", message).help("write `[a, b]`; several keys at once go under `rows`");
        return Vec::new();
    };
    if values.is_empty() {
        problems.error(axis.value.at, "matrix", format!("`{}` has no values: the stage would vanish", axis.key));
    }
    values.into_iter().filter(|value| names_a_node(value, problems)).collect()
}

/// Whether a value can stand in the name of a node.
fn names_a_node(value: &Yaml, problems: &mut Problems<'_>) -> bool {
    let text = value.scalar_text();
    let sound = text.as_ref().is_some_and(|text| {
        !text.is_empty() && text.trim() == text && !text.contains([',', ']', '[', '\n', '"']) && text != "*"
    });
    if !sound {
        let shown = value.shown();
        problems
            .error(value.at, "matrix", format!("{shown} cannot stand in the name of a node"))
            .help("use text without `,`, `[`, `]`, quotes and outer spaces, a number, or true and false");
    }
    sound
}

fn with_rows(
    points: Vec<Vec<Coordinate>>,
    rows: &Entry,
    matrix: &[Entry],
    params: &Yaml,
    problems: &mut Problems<'_>,
) -> Vec<Vec<Coordinate>> {
    let Data::List(list) = &rows.value.data else {
        let message = format!("`rows` is a list of maps, this is {}", rows.value.what());
        problems.error(rows.value.at, "matrix", message);
        return points;
    };
    check_rows(list, matrix, problems);
    let before = matrix.iter().take_while(|entry| entry.key != "rows").filter(|entry| entry.key != "exclude").count();
    let mut all = Vec::new();
    for point in rows_in_order(&points, before, list) {
        let (head, row, tail) = point;
        let lists: Vec<(String, Yaml)> = head.iter().chain(tail).map(|(_, k, v)| (k.clone(), v.clone())).collect();
        let scope = Scope::node(params, &lists);
        let mut step: Vec<Coordinate> = Vec::new();
        for (index, entry) in row.entries().iter().enumerate() {
            let Some(value) = scope.resolve(&entry.value, problems) else { continue };
            if index > 0 || names_a_node(&value, problems) {
                step.push((index == 0, entry.key.clone(), value));
            }
        }
        all.push([head, &step, tail].concat());
        if all.len() > MAX_NODES {
            break;
        }
    }
    all
}

/// Every (values before, row, values after): rows vary at their own place among the axes.
fn rows_in_order<'p>(
    points: &'p [Vec<Coordinate>],
    before: usize,
    rows: &'p [Yaml],
) -> Vec<(&'p [Coordinate], &'p Yaml, &'p [Coordinate])> {
    let mut groups: Vec<Vec<&'p Vec<Coordinate>>> = Vec::new();
    for point in points {
        let split = before.min(point.len());
        match groups.last_mut() {
            Some(group) if same_values(&group[0][..split], &point[..split]) => group.push(point),
            _ => groups.push(vec![point]),
        }
    }
    let in_group = |group: Vec<&'p Vec<Coordinate>>| {
        let pairs = rows.iter().flat_map(move |row| group.clone().into_iter().map(move |point| (row, point)));
        pairs.map(move |(row, point)| {
            let (head, tail) = point.split_at(before.min(point.len()));
            (head, row, tail)
        })
    };
    groups.into_iter().flat_map(in_group).take(MAX_NODES + 1).collect()
}

fn same_values(a: &[Coordinate], b: &[Coordinate]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.1 == b.1 && a.2.data == b.2.data)
}

fn check_rows(rows: &[Yaml], matrix: &[Entry], problems: &mut Problems<'_>) {
    let mut first: Option<Vec<&str>> = None;
    for row in rows {
        if !check_map(row, "a row", problems) {
            continue;
        }
        let keys: Vec<&str> = row.entries().iter().map(|entry| entry.key.as_str()).collect();
        for entry in row.entries() {
            if matrix.iter().any(|axis| axis.key == entry.key) {
                problems.error(entry.key_at, "matrix", format!("`{}` is already an axis of this matrix", entry.key));
            }
        }
        let expected = first.get_or_insert_with(|| keys.clone());
        if *expected != keys {
            problems
                .error(row.at, "matrix", format!("this row sets [{}]", keys.join(", ")))
                .help(format!("every row sets the same keys in the same order: [{}]", expected.join(", ")));
        }
    }
    if rows.is_empty() || first.is_some_and(|keys| keys.is_empty()) {
        let at = rows.first().map_or(matrix[0].key_at, |row| row.at);
        problems.error(at, "matrix", "`rows` sets nothing: the stage would vanish");
    }
}

/// Rules under `exclude`, each with its place.
fn exclusions(stage: &StageSpec, params: &Yaml, problems: &mut Problems<'_>) -> Vec<(Span, Yaml)> {
    let Some(matrix) = stage.fields.get("matrix") else { return Vec::new() };
    let Some(exclude) = matrix.get("exclude") else { return Vec::new() };
    let Some(Yaml { data: Data::List(rules), .. }) = Scope::params(params).resolve(exclude, problems) else {
        problems.error(exclude.at, "matrix", format!("`exclude` is a list of maps, this is {}", exclude.what()));
        return Vec::new();
    };
    let mut known: Vec<&str> = matrix.entries().iter().map(|e| e.key.as_str()).collect();
    known.retain(|key| !["rows", "exclude"].contains(key));
    if let Some(Yaml { data: Data::List(rows), .. }) = matrix.get("rows") {
        known.extend(rows.iter().take(1).flat_map(Yaml::entries).map(|entry| entry.key.as_str()));
    }
    for rule in &rules {
        if check_map(rule, "a rule of `exclude`", problems) && rule.entries().is_empty() {
            problems.error(rule.at, "matrix", "this rule excludes every node");
        }
        for entry in rule.entries().iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            problems
                .error(entry.key_at, "unknown-matrix-key", format!("the matrix has no `{}`", entry.key))
                .suggest(&entry.key, known.iter().copied());
        }
    }
    rules.into_iter().filter(|rule| !rule.entries().is_empty()).map(|rule| (rule.at, rule)).collect()
}

fn matches(rule: &Yaml, coords: &[(String, Yaml)]) -> bool {
    rule.entries().iter().all(|entry| {
        coords
            .iter()
            .any(|(key, value)| *key == entry.key && (value.data == entry.value.data || same_text(value, &entry.value)))
    })
}

fn same_text(a: &Yaml, b: &Yaml) -> bool {
    a.scalar_text().is_some_and(|text| b.scalar_text().is_some_and(|other| text == other))
}

fn check_unique(drafts: &[Draft], pipeline: &Pipeline, problems: &mut Problems<'_>) {
    let mut seen = std::collections::BTreeSet::new();
    for draft in drafts {
        if !seen.insert(&draft.name) {
            let at = draft.coords.first().map_or(pipeline.stages[draft.stage].at, |(_, value)| value.at);
            problems
                .error(at, "duplicate-name", format!("two nodes would be called `{}`", draft.name))
                .help("the values of a list, and the first keys of `rows`, must differ");
        }
    }
}

/// Where `when` switches a stage off.
fn is_off(stage: &StageSpec, params: &Yaml, problems: &mut Problems<'_>) -> Option<Span> {
    let when = stage.fields.get("when")?;
    let value = Scope::params(params).resolve(when, problems)?;
    match decide(&value) {
        Some(true) => None,
        Some(false) => Some(when.at),
        None => {
            problems
                .error(when.at, "when", "`when` must come out as true or false")
                .help("write `${params.NAME}`, `!${params.NAME}`, or compare: `${params.NAME} == value`, `!=`");
            None
        }
    }
}

/// `true`, `!false`, `a == b`, `a != b`.
fn decide(value: &Yaml) -> Option<bool> {
    let text = match &value.data {
        Data::Bool(value) => return Some(*value),
        Data::Text(text) => text.trim(),
        _ => return None,
    };
    for (operator, wanted) in [("==", true), ("!=", false)] {
        if let Some((left, right)) = text.split_once(operator) {
            return Some((left.trim() == right.trim()) == wanted);
        }
    }
    let (text, wanted) = text.strip_prefix('!').map_or((text, true), |rest| (rest.trim(), false));
    text.parse::<bool>().ok().map(|value| value == wanted)
}
