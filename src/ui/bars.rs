//! A run on a terminal: one bar for all nodes with an estimate of the time left, one for each that runs.
//!
//! The estimate adds up what earlier runs took for the nodes that are left; nodes nobody has timed count as the mean of
//! those that are known. A running node with a progress note is extrapolated from its own pace.

use std::collections::BTreeMap;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use mpcc_engine::event::{Event, Header, What};
use mpcc_engine::stage::Note;

use super::{Reporter, lines, seconds};

/// How often a spinner turns.
const TICK: Duration = Duration::from_millis(120);

/// Draws bars.
pub(crate) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    running: BTreeMap<String, ProgressBar>,
    left: Left,
}

impl Bars {
    /// Bars on standard error, where they do not mix with what is printed.
    pub(crate) fn new() -> Self {
        let all = MultiProgress::new();
        let total = all.add(ProgressBar::new(0));
        total.set_style(style("{bar:28.green} {pos}/{len} nodes  {elapsed}  {msg}"));
        total.enable_steady_tick(TICK);
        Self { all, total, running: BTreeMap::new(), left: Left::default() }
    }

    fn line(&self, text: &str) {
        // A terminal that cannot be written to shows nothing, and that is all.
        let _ = self.all.println(text);
    }

    fn start(&mut self, node: &str) {
        let bar = self.all.insert_before(&self.total, ProgressBar::new_spinner());
        bar.set_style(style("  {spinner} {prefix}  {elapsed}"));
        bar.set_prefix(node.to_owned());
        bar.enable_steady_tick(TICK);
        self.running.insert(node.to_owned(), bar);
    }

    fn progress(&self, node: &str, done: u64, total: u64, unit: &str) {
        let Some(bar) = self.running.get(node) else { return };
        if bar.length() != Some(total) && total > 0 {
            bar.set_length(total);
            bar.set_style(style("  {spinner} {prefix}  {bar:18} {pos}/{len} {msg}  {elapsed}, {eta} left"));
        }
        bar.set_position(done);
        bar.set_message(unit.to_owned());
    }

    fn end(&mut self, node: &str) {
        if let Some(bar) = self.running.remove(node) {
            bar.finish_and_clear();
        }
        self.left.ended(node);
        self.total.inc(1);
        self.total.set_message(self.left.text());
    }
}

impl Reporter for Bars {
    fn event(&mut self, event: &Event) {
        match &event.what {
            What::RunStarted { run, pipeline, nodes, .. } => {
                self.left = Left::new(nodes);
                self.total.set_length(nodes.len() as u64);
                self.total.set_message(self.left.text());
                self.line(&format!("run {run}: {pipeline}, {} nodes", nodes.len()));
            }
            What::RunFinished { .. } => {
                self.total.finish_and_clear();
                let _ = self.all.clear();
            }
            What::NodeStarted { node, .. } => self.start(node),
            What::NodeNote { node, note: Note::Progress { done, total, unit } } => {
                self.progress(node, *done, *total, unit)
            }
            what => {
                if let Some(line) = lines::line(what) {
                    self.line(&line);
                }
            }
        }
        if let (true, Some(node)) = (lines::ends_node(&event.what), event.what.node()) {
            self.end(node);
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates here are well-formed").progress_chars("█▌ ")
}

/// What is left to do.
#[derive(Default)]
struct Left {
    /// Node -> seconds it is expected to take, if anybody knows.
    expected: BTreeMap<String, Option<f64>>,
    mean: Option<f64>,
}

impl Left {
    fn new(nodes: &[Header]) -> Self {
        let known: Vec<f64> = nodes.iter().filter_map(|node| node.expected_s).collect();
        let mean = (!known.is_empty()).then(|| known.iter().sum::<f64>() / known.len() as f64);
        Self { expected: nodes.iter().map(|node| (node.node.clone(), node.expected_s)).collect(), mean }
    }

    fn ended(&mut self, node: &str) {
        self.expected.remove(node);
    }

    /// `about 4 m 05 s of work left`; nothing while nobody knows.
    fn text(&self) -> String {
        match self.mean {
            Some(mean) if !self.expected.is_empty() => {
                let work: f64 = self.expected.values().map(|expected| expected.unwrap_or(mean)).sum();
                format!("about {} of work left", seconds(work))
            }
            _ => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_nobody_has_timed_count_as_the_mean() {
        let header = |node: &str, expected_s| Header {
            node: node.to_owned(),
            stage: node.to_owned(),
            matrix: Vec::new(),
            kind: "run".to_owned(),
            ports: Vec::new(),
            parents: Vec::new(),
            expected_s,
        };
        let mut left = Left::new(&[header("a", Some(100.0)), header("b", Some(20.0)), header("c", None)]);
        assert_eq!(left.text(), "about 3 m 00 s of work left");
        left.ended("a");
        assert_eq!(left.text(), "about 1 m 20 s of work left");
        assert_eq!(Left::new(&[header("a", None)]).text(), "");
    }
}
