//! Reasons and changes in words.

use mpcc_engine::cache::Change;
use mpcc_engine::preview::Reason;
use serde_json::Value;

/// Characters of a value that are shown.
const SHOWN: usize = 60;

/// Why a node runs.
pub(crate) fn reason(reason: &Reason) -> String {
    match reason {
        Reason::NoEntry => "never run with this store".to_owned(),
        Reason::Changed(change) => self::change(change),
        Reason::Unfinished => "was begun and did not finish".to_owned(),
        Reason::ObjectMissing => "an output is gone from the store or was damaged".to_owned(),
        Reason::Forced => "forced".to_owned(),
        Reason::NoCache => "says `cache: false`".to_owned(),
        Reason::Missing { message } => format!("cannot run: {message}"),
    }
}

/// `params.threshold 6 -> 7`.
pub(crate) fn change(change: &Change) -> String {
    let side = |value: &Option<Value>| value.as_ref().map_or_else(|| "(none)".to_owned(), value_text);
    format!("{} {} -> {}", change.field, side(&change.old), side(&change.new))
}

/// A value on one line; digests and long texts are cut.
fn value_text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => short_digest(text).unwrap_or_else(|| serde_json::to_string(text).expect("plain data")),
        other => other.to_string(),
    };
    if text.chars().count() <= SHOWN {
        return text;
    }
    let half = SHOWN / 2;
    let head: String = text.chars().take(half).collect();
    let tail: Vec<char> = text.chars().rev().take(half).collect();
    format!("{head}...{}", tail.into_iter().rev().collect::<String>())
}

/// `file:0123456789ab` of a value that names an artifact.
fn short_digest(text: &str) -> Option<String> {
    let (kind, digest) = text.rsplit_once(':').unwrap_or(("", text));
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_digest.then(|| format!("{kind}{}{}", if kind.is_empty() { "" } else { ":" }, &digest[..12]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn changed(old: Option<Value>, new: Option<Value>) -> String {
        change(&Change { field: "params.x".to_owned(), old, new })
    }

    #[test]
    fn changes_fit_a_line() {
        assert_eq!(changed(Some(json!(6)), Some(json!(7.5))), "params.x 6 -> 7.5");
        assert_eq!(changed(None, Some(json!("a b"))), "params.x (none) -> \"a b\"");
        let digest = format!("tree:{}", "ab".repeat(32));
        assert_eq!(changed(Some(json!(digest)), None), "params.x tree:abababababab -> (none)");
        let long = changed(Some(json!("x".repeat(500))), Some(json!([1])));
        assert!(long.len() < 100 && long.ends_with("-> [1]"), "{long}");
    }
}
