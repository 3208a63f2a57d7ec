//! Suggestions: the known name nearest to one that is not known.

/// `; did you mean ...?` when one of `known` is near `name`, else nothing.
pub fn hint<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, known).map_or(String::new(), |near| format!("; did you mean `{near}`?"))
}

/// The nearest of `known`, if any is near.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let score =
        |candidate: &str| strsim::normalized_damerau_levenshtein(&name.to_lowercase(), &candidate.to_lowercase());
    let scored = known.into_iter().map(|candidate| (score(candidate), candidate));
    let best = scored.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.filter(|(score, _)| *score > 0.5).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        assert_eq!(hint("refrigerater", ["oven", "refrigerator"]), "; did you mean `refrigerator`?");
        assert_eq!(hint("spaceship", ["oven", "refrigerator"]), "");
    }
}
