//! `mpcc schema`: the JSON Schema of pipeline files.

use mpcc_engine::schema::json_schema;

use super::Answer;
use crate::report::DONE;
use crate::ui::say;

/// Prints the schema.
pub(super) fn schema() -> Answer {
    let schema = json_schema(&mpcc_stages::registry());
    say(serde_json::to_string_pretty(&schema).expect("plain data"));
    Ok(DONE)
}
