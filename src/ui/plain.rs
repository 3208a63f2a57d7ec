//! A run in plain lines, for pipes and files.

use std::collections::BTreeMap;

use mpcc_engine::event::{Event, What};
use mpcc_engine::stage::Note;

use super::{Reporter, lines, say};

/// Progress of one node is said at most this often, in seconds.
const PROGRESS_EVERY_S: f64 = 15.0;

/// Prints a line an event.
#[derive(Default)]
pub(crate) struct Plain {
    total: usize,
    ended: usize,
    /// Node -> when its progress was last said, in seconds since the run began.
    progressed: BTreeMap<String, f64>,
}

impl Plain {
    fn progress(&mut self, node: &str, at_s: f64, text: &str) {
        let last = self.progressed.entry(node.to_owned()).or_insert(at_s);
        if at_s - *last >= PROGRESS_EVERY_S {
            *last = at_s;
            self.counted(&format!("{node}: {text}"));
        }
    }

    fn counted(&self, line: &str) {
        let width = self.total.to_string().len();
        say(format_args!("[{:width$}/{}] {line}", self.ended, self.total));
    }
}

impl Reporter for Plain {
    fn event(&mut self, event: &Event) {
        self.ended += usize::from(lines::ends_node(&event.what));
        match &event.what {
            What::RunStarted { run, pipeline, profile, nodes, .. } => {
                self.total = nodes.len();
                let profile = profile.as_ref().map(|profile| format!(", profile {profile}")).unwrap_or_default();
                say(format_args!("run {run}: {pipeline}{profile}, {} nodes", nodes.len()));
            }
            What::NodeNote { node, note: Note::Progress { done, total, unit } } => {
                let of = if *total > 0 { format!(" of {total}") } else { String::new() };
                self.progress(node, event.at_s, &format!("{done}{of} {unit}"));
            }
            what => {
                if let Some(line) = lines::line(what) {
                    self.counted(&line);
                }
            }
        }
    }
}
