//! Selectors: `stage`, `stage.port`, `stage[split=ood].port`, `stage[*].port`.
//!
//! Values of coordinates may hold anything but `,` and `]`, so `answer[method=sft+rft].answers` needs no quotes.

use crate::spec::pipeline::is_name;

/// A selector taken apart.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selector<'t> {
    /// The stage.
    pub(super) stage: &'t str,
    /// Coordinates that are fixed.
    pub(super) fixed: Vec<(&'t str, &'t str)>,
    /// Whether `*` takes all that is left.
    pub(super) star: bool,
    /// The port, if named.
    pub(super) port: Option<&'t str>,
}

/// Takes a selector apart; the error says what is wrong.
pub(super) fn parse(text: &str) -> Result<Selector<'_>, String> {
    let (head, inside, tail) = cut(text)?;
    let (stage, port) = match inside {
        Some(_) => (head, tail.strip_prefix('.').map_or_else(|| check_no_tail(tail), |port| Ok(Some(port)))?),
        None => head.split_once('.').map_or((head, None), |(stage, port)| (stage, Some(port))),
    };
    for name in [Some(stage), port].into_iter().flatten() {
        if !is_name(name, false) {
            return Err(format!("`{text}` is no source: `{name}` is no name"));
        }
    }
    let mut selector = Selector { stage, fixed: Vec::new(), star: false, port };
    for part in inside.into_iter().flat_map(|inside| inside.split(',')).map(str::trim) {
        match part.split_once('=') {
            None if part == "*" => selector.star = true,
            Some((key, "*")) if is_name(key.trim(), false) => selector.star = true,
            Some((key, value)) if !key.trim().is_empty() => selector.fixed.push((key.trim(), value.trim())),
            _ => return Err(format!("`{part}` in `{text}` fixes nothing: write `key=value` or `*`")),
        }
    }
    Ok(selector)
}

/// What stands before, inside and after the brackets.
fn cut(text: &str) -> Result<(&str, Option<&str>, &str), String> {
    let text = text.trim();
    let Some((head, rest)) = text.split_once('[') else { return Ok((text, None, "")) };
    let (inside, tail) = rest.split_once(']').ok_or_else(|| format!("`{text}` has `[` without `]`"))?;
    Ok((head, Some(inside), tail))
}

fn check_no_tail(tail: &str) -> Result<Option<&str>, String> {
    if tail.is_empty() { Ok(None) } else { Err(format!("`{tail}` after `]` is no port: write `.PORT`")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_selectors_apart() {
        let plain = |stage, port| Selector { stage, fixed: vec![], star: false, port };
        assert_eq!(parse("filter").unwrap(), plain("filter", None));
        assert_eq!(parse("filter.regions").unwrap(), plain("filter", Some("regions")));
        let fixed = parse("answer[split=full,method=sft+rft].answers").unwrap();
        assert_eq!(fixed.fixed, [("split", "full"), ("method", "sft+rft")]);
        assert_eq!(fixed.port, Some("answers"));
        assert!(parse("score[*].scores").unwrap().star);
        assert!(parse("score[split=full, *]").unwrap().star);
        assert_eq!(parse("a[k=x.y]").unwrap().port, None);
    }

    #[test]
    fn refuses_what_is_no_selector() {
        for text in ["", "a[", "a[]", "a[x]", "a[k=v]port", "a.b.c", "a b", "[k=v].p", "a[=v]", "a."] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
