//! Names: matching what a model wrote to the categories of a dataset.

use std::collections::BTreeMap;

/// The category names of a dataset, looked up the way people write them.
pub struct Vocabulary {
    by_key: BTreeMap<String, String>,
}

impl Vocabulary {
    /// A vocabulary of `names`.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self { by_key: names.into_iter().map(|name| (key(name), name.to_owned())).collect() }
    }

    /// The category that `text` names: articles, case, a final full stop and a plural s aside.
    pub fn find(&self, text: &str) -> Option<&str> {
        let key = key(text);
        let singular = key.strip_suffix('s').unwrap_or(&key);
        self.by_key.get(&key).or_else(|| self.by_key.get(singular)).map(String::as_str)
    }
}

fn key(text: &str) -> String {
    let lower = text.trim().trim_end_matches(['.', ',', '!']).trim().to_lowercase();
    let bare = ["a ", "an ", "the "].into_iter().find_map(|article| lower.strip_prefix(article)).unwrap_or(&lower);
    bare.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_names_as_people_write_them() {
        let names = Vocabulary::new(["teddy bear", "cup", "bus", "scissors"]);
        for (text, name) in [
            ("cup", "cup"),
            (" A Cup.", "cup"),
            ("the  teddy   bear", "teddy bear"),
            ("cups", "cup"),
            ("bus", "bus"),
            ("scissors", "scissors"),
        ] {
            assert_eq!(names.find(text), Some(name), "{text}");
        }
        assert_eq!(names.find("a mug"), None);
    }
}
