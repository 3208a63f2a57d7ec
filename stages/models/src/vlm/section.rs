//! A JSON object of `config.json` whose missing keys have names in messages and, where the format leaves keys out, defaults.

use serde_json::Value;

/// What a configuration says, or a message that names the key.
pub(super) type Said<T> = std::result::Result<T, String>;

/// A JSON object and the name under which messages show its keys.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    pub(super) value: &'a Value,
    pub(super) name: &'static str,
}

impl Section<'_> {
    pub(super) fn number(&self, key: &str) -> Said<usize> {
        let found = &self.value[key];
        found
            .as_u64()
            .map(|n| n as usize)
            .ok_or_else(|| format!("`{}{key}` must be a whole number, found {found}", self.name))
    }

    /// A number that published files leave out where it is the architecture's default.
    pub(super) fn number_or(&self, key: &str, fallback: usize) -> Said<usize> {
        if self.value[key].is_null() { Ok(fallback) } else { self.number(key) }
    }

    pub(super) fn float_or(&self, key: &str, fallback: f64) -> Said<f64> {
        let found = &self.value[key];
        match found.is_null() {
            true => Ok(fallback),
            false => found.as_f64().ok_or_else(|| format!("`{}{key}` must be a number, found {found}", self.name)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> bool {
        self.value[key].as_bool().unwrap_or(false)
    }

    /// Refuses a word that is not the one supported; a missing key is taken for it.
    pub(super) fn only(&self, key: &str, word: &str) -> Said<()> {
        match self.value[key].as_str() {
            Some(other) if other != word => {
                Err(format!("`{}{key}` is `{other}`; only `{word}` is supported", self.name))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn token(&self, key: &str) -> Option<u32> {
        self.value[key].as_u64().map(|id| id as u32)
    }
}
