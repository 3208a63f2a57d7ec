//! Takes secrets out of whatever a stage says or prints.

use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, Read, Write};

/// What stands where a secret stood.
const MASK: &[u8] = b"***";

/// Shorter values are no secrets: masking `1` would only spoil logs.
const SHORTEST: usize = 4;

/// Replaces secrets, as they are and as they look inside a JSON string.
#[derive(Clone, Debug, Default)]
pub struct Redactor {
    /// Longest first, so that a secret that holds another one goes as a whole.
    secrets: Vec<Vec<u8>>,
}

impl Redactor {
    /// Knows `secrets`.
    pub fn new(secrets: Vec<String>) -> Self {
        let mut forms: Vec<Vec<u8>> = Vec::new();
        for secret in secrets.into_iter().filter(|secret| secret.len() >= SHORTEST) {
            let json = serde_json::to_string(&secret).expect("a string is JSON");
            forms.push(json.trim_matches('"').as_bytes().to_vec());
            // A secret of several lines is logged line by line.
            forms.extend(secret.lines().filter(|line| line.len() >= SHORTEST).map(|line| line.as_bytes().to_vec()));
        }
        forms.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
        forms.dedup();
        Self { secrets: forms }
    }

    /// Whether there is nothing to hide.
    pub fn is_empty(&self) -> bool {
        self.secrets.is_empty()
    }

    /// `text` without secrets.
    pub fn clean<'a>(&self, text: &'a [u8]) -> Cow<'a, [u8]> {
        let mut clean = Cow::Borrowed(text);
        for secret in &self.secrets {
            if let Some(replaced) = replace(&clean, secret) {
                clean = Cow::Owned(replaced);
            }
        }
        clean
    }

    /// Copies `from` to `to` until its end, line by line.
    pub fn copy(&self, from: impl Read, mut to: impl Write) -> io::Result<()> {
        let mut lines = BufReader::new(from);
        let mut line = Vec::new();
        while lines.read_until(b'\n', &mut line)? > 0 {
            to.write_all(&self.clean(&line))?;
            line.clear();
        }
        Ok(())
    }
}

/// `text` with every `secret` masked; none when there is none.
fn replace(text: &[u8], secret: &[u8]) -> Option<Vec<u8>> {
    let mut rest = text;
    let mut out = Vec::new();
    let mut found = false;
    while let Some(at) = rest.windows(secret.len()).position(|window| window == secret) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(MASK);
        rest = &rest[at + secret.len()..];
        found = true;
    }
    out.extend_from_slice(rest);
    found.then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clean(secrets: &[&str], text: &str) -> String {
        let redactor = Redactor::new(secrets.iter().map(|&secret| secret.to_owned()).collect());
        let mut out = Vec::new();
        redactor.copy(text.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn secrets_are_masked() {
        assert_eq!(clean(&["sk-abc"], "key sk-abc, sk-abc\nagain sk-abc"), "key ***, ***\nagain ***");
        assert_eq!(clean(&["sk-a", "sk-abcd"], "sk-abcd"), "***");
        assert_eq!(clean(&["a\"bc\"d"], r#"{"m": "a\"bc\"d"}"#), r#"{"m": "***"}"#);
        assert_eq!(clean(&["line one\nline two"], "got line two"), "got ***");
        assert_eq!(clean(&["1", ""], "1 + 1"), "1 + 1");
        assert_eq!(clean(&[], "plain"), "plain");
    }
}
