//! Events for programs: one JSON object a line on standard output.

use mpcc_engine::event::Event;

use super::{Reporter, say};

/// Prints every event.
pub(crate) struct Json;

impl Reporter for Json {
    fn event(&mut self, event: &Event) {
        say(to_line(event));
    }
}

/// One line of JSON.
pub(crate) fn to_line(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("plain data")
}
