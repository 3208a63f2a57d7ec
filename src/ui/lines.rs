//! The sentence for an event, the same on a terminal and in a pipe.

use mpcc_engine::event::{MemoCount, What};
use mpcc_engine::resources::format_size;
use mpcc_engine::scheduler::Growth;
use mpcc_engine::stage::Note;

use super::{seconds, spent};

/// What to say of an event; nothing for those that only move a bar.
pub(crate) fn line(what: &What) -> Option<String> {
    Some(match what {
        What::NodeStarted { node, attempt, .. } => match attempt {
            1 => format!("{node}: started"),
            _ => format!("{node}: started, attempt {attempt}"),
        },
        What::NodeNote { node, note: Note::Warning { message } } => format!("{node}: warning: {message}"),
        What::NodeElsewhere { node } => format!("{node}: another run executes it, waiting"),
        What::NodeRetrying { node, attempt, message, growth: Some(Growth { memory, from, to }), .. } => {
            let from = if *from > 0 { format!(" instead of {}", format_size(*from)) } else { String::new() };
            format!("{node}: {message}; attempt {attempt} gets {} of {memory}{from}", format_size(*to))
        }
        What::NodeRetrying { node, attempt, delay_s, message, .. } => {
            format!("{node}: {message}; attempt {attempt} in {}", seconds(*delay_s))
        }
        What::NodeCached { node, .. } => format!("{node}: up to date"),
        What::NodeFinished { node, wall_s, memo, spent, .. } => {
            let spent = spent.map(|spent| format!(", {}", spent::text(&spent))).unwrap_or_default();
            format!("{node}: done in {}{}{spent}", seconds(*wall_s), memo_text(memo.as_ref()))
        }
        What::NodeFailed { node, message, .. } => format!("{node}: failed: {message}"),
        What::NodeSkipped { node, because } => format!("{node}: skipped, {because} failed"),
        What::NodeWaiting { node, message } => format!("{node}: waiting: {message}"),
        What::NodeCancelled { node } => format!("{node}: cancelled"),
        What::NodePublished { path, port, node } => format!("{node}: {port} is in {}", path.display()),
        What::NodeNote { .. } | What::RunStarted { .. } | What::RunFinished { .. } => return None,
    })
}

/// Whether an event is the last one of its node.
pub(crate) fn ends_node(what: &What) -> bool {
    matches!(
        what,
        What::NodeCached { .. }
            | What::NodeFinished { .. }
            | What::NodeFailed { .. }
            | What::NodeSkipped { .. }
            | What::NodeWaiting { .. }
            | What::NodeCancelled { .. }
    )
}

/// `, 39999 of 40000 from the memo`.
fn memo_text(memo: Option<&MemoCount>) -> String {
    match memo {
        Some(MemoCount { hits, misses }) if *hits > 0 => format!(", {hits} of {} from the memo", hits + misses),
        _ => String::new(),
    }
}
