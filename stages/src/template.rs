//! Prompt templates: plain text with `{{name}}` where a value goes.

use std::collections::BTreeSet;

/// A placeholder that nothing fills.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TemplateError {
    /// The name is not one of those the stage offers.
    #[error("the prompt template uses `{{{{{name}}}}}`, which is not available here; available: {known}")]
    Unknown {
        /// The name as written.
        name: String,
        /// The names on offer, comma-separated.
        known: String,
    },
    /// `{{` without `}}`.
    #[error("the prompt template opens `{{{{` near `{near}` and never closes it with `}}}}`")]
    Unclosed {
        /// The text that follows.
        near: String,
    },
}

/// `template` with every `{{name}}` replaced by its value, trailing white space of the file removed.
pub fn render(template: &str, values: &[(&str, &str)]) -> Result<String, TemplateError> {
    let mut text = String::with_capacity(template.len());
    let mut rest = template.trim_end();
    while let Some(open) = rest.find("{{") {
        text.push_str(&rest[..open]);
        let inside = &rest[open + 2..];
        let close =
            inside.find("}}").ok_or_else(|| TemplateError::Unclosed { near: inside.chars().take(20).collect() })?;
        let name = inside[..close].trim();
        let value = values.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        text.push_str(value.ok_or_else(|| unknown(name, values))?);
        rest = &inside[close + 2..];
    }
    text.push_str(rest);
    Ok(text)
}

fn unknown(name: &str, values: &[(&str, &str)]) -> TemplateError {
    let names: BTreeSet<&str> = values.iter().map(|(key, _)| *key).collect();
    TemplateError::Unknown { name: name.to_owned(), known: names.into_iter().collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_names_and_keeps_the_rest() {
        let text = render("the {{ category }} at {{place}} ?\n", &[("category", "cup"), ("place", "top left")]);
        assert_eq!(text.unwrap(), "the cup at top left ?");
    }

    #[test]
    fn names_what_is_wrong() {
        let error = render("{{catgory}}", &[("category", "cup")]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "the prompt template uses `{{catgory}}`, which is not available here; available: category"
        );
        assert!(matches!(render("a {{b", &[]), Err(TemplateError::Unclosed { .. })));
    }
}
