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
    let [old, new] =
        [&change.old, &change.new].map(|value| value.as_ref().map_or_else(|| "(none)".to_owned(), value_text));
    let same = old.chars().zip(new.chars()).take_while(|(a, b)| a == b).count();
    format!("{} {} -> {}", change.field, window(&old, same), window(&new, same))
}

/// A value on one line; digests are cut.
fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => short_digest(text).unwrap_or_else(|| serde_json::to_string(text).expect("plain data")),
        other => other.to_string(),
    }
}

/// The part of a long text around the character `at`, where it begins to differ.
fn window(text: &str, at: usize) -> String {
    let length = text.chars().count();
    if length <= SHOWN {
        return text.to_owned();
    }
    let start = at.saturating_sub(SHOWN / 2).min(length - SHOWN);
    let part: String = text.chars().skip(start).take(SHOWN).collect();
    let (before, after) = (if start > 0 { "..." } else { "" }, if start + SHOWN < length { "..." } else { "" });
    format!("{before}{part}{after}")
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
        let long = |middle: &str| Some(json!(format!("{0}{middle}{0}", "x".repeat(300))));
        let text = changed(long("old"), long("new"));
        assert!(text.len() < 170 && text.contains("xold") && text.contains("xnewx"), "{text}");
    }
}
