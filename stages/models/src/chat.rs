//! Conversations and the template that turns them into the text a model was trained on.
//!
//! Templates are Jinja files written for a Python interpreter: blocks are trimmed, `raise_exception` exists, and strings, lists
//! and dicts have Python's methods. They are found in `chat_template.jinja`, `chat_template.json` or `tokenizer_config.json`,
//! in this order.

use std::path::Path;

use minijinja::{Environment, ErrorKind, context};
use serde_json::{Value, json};

use crate::checkpoint::read_json_if_there;
use crate::error::{ModelError, Result};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The instructions before the conversation.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that templates know.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Some text.
    Text(String),
    /// The next picture of the prompt's list.
    Image,
}

/// What one speaker says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub parts: Vec<Part>,
}

impl Turn {
    /// A turn of text alone.
    pub fn text(role: Role, text: impl Into<String>) -> Turn {
        Turn { role, parts: vec![Part::Text(text.into())] }
    }

    /// Number of pictures in the turn.
    pub fn images(&self) -> usize {
        self.parts.iter().filter(|part| **part == Part::Image).count()
    }

    fn message(&self, content: Content, placeholder: &str) -> Value {
        let content = match (self.parts.as_slice(), content) {
            ([Part::Text(text)], Content::Either) => Value::from(text.as_str()),
            (parts, Content::Text) => {
                let written = parts.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Image => format!("{placeholder}\n"),
                });
                Value::from(written.collect::<String>())
            }
            (parts, _) => parts
                .iter()
                .map(|part| match part {
                    Part::Text(text) => json!({ "type": "text", "text": text }),
                    Part::Image => json!({ "type": "image" }),
                })
                .collect(),
        };
        json!({ "role": self.role.name(), "content": content })
    }
}

/// In which form a template takes what a turn says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// A string where a turn is text alone, else a list of parts: the template asks which.
    Either,
    /// Always a list of parts.
    Parts,
    /// Always a string: a template made for text, in which each picture is its placeholder and a line break.
    Text,
}

impl Content {
    /// The form that a template's text shows.
    fn of(source: &str) -> Content {
        let has = |words: &[&str]| words.iter().any(|word| source.contains(word));
        if has(&["is string", "is not string"]) {
            Content::Either
        } else if has(&["['type']", "[\"type\"]", ".type", "'type'", "\"type\""]) {
            Content::Parts
        } else {
            Content::Text
        }
    }
}

/// A compiled chat template.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    source: String,
    content: Content,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is no valid Jinja.
    pub fn new(source: impl Into<String>) -> Result<ChatTemplate> {
        let source = source.into();
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> std::result::Result<String, _> {
            Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_template_owned("chat", source.clone()).map_err(template_error)?;
        Ok(ChatTemplate { environment, content: Content::of(&source), source })
    }

    /// Finds the template of a model directory.
    ///
    /// # Errors
    /// When there is none, or it does not compile.
    pub fn read(dir: &Path, tokenizer_config: &Value) -> Result<ChatTemplate> {
        let file = dir.join("chat_template.jinja");
        if file.exists() {
            let source = std::fs::read_to_string(&file).map_err(|source| ModelError::Read { path: file, source })?;
            return ChatTemplate::new(source);
        }
        let json = read_json_if_there(&dir.join("chat_template.json"))?.unwrap_or(Value::Null);
        let found =
            default_template(&json["chat_template"]).or_else(|| default_template(&tokenizer_config["chat_template"]));
        let message = "no chat template in chat_template.jinja, chat_template.json or tokenizer_config.json";
        ChatTemplate::new(found.ok_or_else(|| ModelError::File { path: dir.into(), message: message.into() })?)
    }

    /// The template's text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; `open` adds the opening of the model's next turn. `placeholder` stands for a picture where the
    /// template knows text alone.
    ///
    /// # Errors
    /// When the template raises an error.
    pub fn render(
        &self,
        turns: &[Turn],
        open: bool,
        placeholder: &str,
        bos: Option<&str>,
        eos: Option<&str>,
    ) -> Result<String> {
        let messages: Vec<Value> = turns.iter().map(|turn| turn.message(self.content, placeholder)).collect();
        let template = self.environment.get_template("chat").map_err(template_error)?;
        template
            .render(context! {
                messages => messages, add_generation_prompt => open,
                bos_token => bos.unwrap_or_default(), eos_token => eos.unwrap_or_default(),
            })
            .map_err(template_error)
    }
}

/// A template is a string, or a list of named ones of which `default` counts.
fn default_template(value: &Value) -> Option<String> {
    let named = |entry: &&Value| entry["name"] == "default";
    value.as_str().or_else(|| value.as_array()?.iter().find(named)?["template"].as_str()).map(str::to_owned)
}

#[allow(clippy::needless_pass_by_value, reason = "used as a function of map_err")]
fn template_error(error: minijinja::Error) -> ModelError {
    ModelError::Template(format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = "{%- for message in messages %}\n    {%- if message['content'] is string %}\n{{ '<' + message.role + '>' + message.content.strip() }}\n    {%- else %}\n        {%- for part in message['content'] %}\n            {%- if part['type'] == 'image' or 'image' in part %}[image]{% elif 'text' in part %}{{ part['text'] }}{% endif %}\n        {%- endfor %}\n    {%- endif %}\n{%- endfor %}\n{%- if add_generation_prompt %}<open>{% endif %}";

    #[test]
    fn renders_text_and_pictures() {
        let template = ChatTemplate::new(TEMPLATE).unwrap();
        let turns = [
            Turn::text(Role::System, " rules "),
            Turn { role: Role::User, parts: vec![Part::Image, Part::Text("what?".into())] },
        ];
        assert_eq!(template.render(&turns, true, "[x]", None, None).unwrap(), "<system>rules[image]what?<open>");
        assert_eq!(turns[1].images(), 1);
    }

    #[test]
    fn the_template_decides_what_form_a_turn_has() {
        let turns = [Turn { role: Role::User, parts: vec![Part::Image, Part::Text("what?".into())] }];
        let text = ChatTemplate::new("{% for m in messages %}{{ m.content }};{% endfor %}").unwrap();
        assert_eq!(text.render(&turns, false, "[x]", None, None).unwrap(), "[x]\nwhat?;");
        let parts = "{% for m in messages %}{% for c in m.content | selectattr('type', 'equalto', 'image') %}[p]{% endfor %}{% for c in m.content | selectattr('type', 'equalto', 'text') %}{{ c.text }}{% endfor %}{% endfor %}";
        let parts = ChatTemplate::new(parts).unwrap();
        assert_eq!(parts.render(&turns, false, "[x]", None, None).unwrap(), "[p]what?");
        assert_eq!(parts.render(&[Turn::text(Role::User, "so")], false, "[x]", None, None).unwrap(), "so");
    }

    #[test]
    fn an_exception_of_the_template_is_the_error() {
        let template = ChatTemplate::new("{{ raise_exception('roles must alternate') }}").unwrap();
        let error = template.render(&[], false, "[x]", None, None).unwrap_err();
        assert!(error.to_string().contains("roles must alternate"), "{error}");
        assert!(ChatTemplate::new("{% if %}").is_err());
    }

    #[test]
    fn the_default_of_a_list_counts() {
        let list = json!([{ "name": "tools", "template": "a" }, { "name": "default", "template": "b" }]);
        assert_eq!(default_template(&list).as_deref(), Some("b"));
        assert_eq!(default_template(&json!("c")).as_deref(), Some("c"));
        assert_eq!(default_template(&Value::Null), None);
    }
}
