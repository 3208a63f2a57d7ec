//! A chat completion's body, to what the model is asked.
//!
//! Fields that would change the answer and are not supported are refused, and so are names that OpenAI's interface has not: a mistyped
//! `max_token` would otherwise go unnoticed.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use mpcc_stages::models::ModelError;
use mpcc_stages::models::chat::{Part, Role, Turn};
use mpcc_stages::models::generate::Sampling;
use mpcc_stages::models::image::{self, RgbImage};
use mpcc_stages::models::vlm::Vlm;
use mpcc_stages::suggest::hint;
use serde_json::{Map, Value};

use super::queue::Prepared;
use super::reply::Refusal;

/// Pixels of one picture at most.
const PIXELS: u64 = 1 << 26;
/// Pictures of one request at most.
const PICTURES: usize = 64;
/// Answers to one request at most.
const CHOICES: u64 = 16;
/// Stop strings at most.
const STOPS: usize = 16;

/// Fields that are understood.
const UNDERSTOOD: [&str; 13] = [
    "model",
    "messages",
    "stream",
    "stream_options",
    "temperature",
    "top_p",
    "top_k",
    "repetition_penalty",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "n",
];
/// Fields that change no answer.
const IGNORED: [&str; 8] = [
    "user",
    "metadata",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
    "top_logprobs",
];
/// Fields of OpenAI's interface that only the value which asks for nothing may have.
const REFUSED: [&str; 15] = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "modalities",
    "prediction",
    "presence_penalty",
    "reasoning_effort",
    "response_format",
    "tool_choice",
    "tools",
    "verbosity",
    "web_search_options",
];

/// A request, understood.
pub(super) struct Asked {
    /// The model's name, where the request has one.
    pub(super) model: Option<String>,
    /// Whether the answer comes in pieces.
    pub(super) stream: bool,
    /// Whether counts end a stream.
    pub(super) with_usage: bool,
    /// One answer a seed.
    pub(super) seeds: Vec<u64>,
    turns: Vec<Turn>,
    pictures: Vec<Picture>,
    sampling: Sampling,
    longest: Option<usize>,
    stops: Vec<String>,
}

/// A picture's bytes and where it was in the request.
struct Picture {
    place: String,
    bytes: Vec<u8>,
}

type Parsed<T> = Result<T, Refusal>;

fn wrong<T>(place: &str, message: impl Into<String>) -> Parsed<T> {
    Err(Refusal::wrong(format!("`{place}` {}", message.into()), Some(place)))
}

/// Understands a body; `number` seeds draws where the request states no seed.
pub(super) fn parse(body: &[u8], number: u64) -> Parsed<Asked> {
    let value: Value = serde_json::from_slice(body)
        .map_err(|error| Refusal::wrong(format!("the body is no JSON: {error}; send one object"), None))?;
    let Value::Object(fields) = value else {
        return Err(Refusal::wrong("the body must be a JSON object with `messages`".to_owned(), None));
    };
    known(&fields)?;
    let fields = Fields(&fields);
    let (mut turns, mut pictures) = (Vec::new(), Vec::new());
    let Some(messages) = fields.get("messages").and_then(Value::as_array).filter(|list| !list.is_empty()) else {
        return wrong("messages", "must be a list of at least one message");
    };
    for (index, message) in messages.iter().enumerate() {
        turns.push(turn(message, index, &mut pictures)?);
    }
    let temperature = fields.number("temperature", 0.0..=2.0)?.unwrap_or(1.0);
    let sampling = Sampling {
        temperature,
        top_p: fields.number("top_p", f64::MIN_POSITIVE..=1.0)?.unwrap_or(1.0),
        top_k: fields.count("top_k", 1 << 20)?.map(|k| k as usize),
        repetition_penalty: fields.number("repetition_penalty", 0.01..=100.0)?.unwrap_or(1.0),
        max_new_tokens: 0,
    };
    let seed = fields.seed()?.unwrap_or(number);
    let choices = fields.count("n", CHOICES)?.unwrap_or(1);
    let longest = match fields.count("max_completion_tokens", 1 << 24)? {
        Some(longest) => Some(longest),
        None => fields.count("max_tokens", 1 << 24)?,
    };
    let options = fields.get("stream_options").cloned().unwrap_or_default();
    Ok(Asked {
        model: fields.text("model")?,
        stream: fields.flag("stream")?,
        with_usage: options["include_usage"] == true,
        seeds: (0..choices).map(|choice| seed.wrapping_add(choice)).collect(),
        turns,
        pictures,
        sampling,
        longest: longest.map(|longest| longest as usize),
        stops: fields.stops()?,
    })
}

/// Refuses names that nobody knows, and what is known and not supported.
fn known(fields: &Map<String, Value>) -> Parsed<()> {
    for (name, value) in fields {
        let name = name.as_str();
        if UNDERSTOOD.contains(&name) || IGNORED.contains(&name) {
            continue;
        }
        if !REFUSED.contains(&name) {
            let near = hint(name, UNDERSTOOD);
            return Err(Refusal::wrong(format!("`{name}` is no field of a chat completion{near}"), Some(name)));
        }
        let asks_nothing = match value {
            Value::Null | Value::Bool(false) => true,
            Value::Number(number) => number.as_f64() == Some(0.0),
            Value::String(word) => ["none", "auto", "medium"].contains(&word.as_str()),
            Value::Array(list) => list.is_empty() || (name == "modalities" && *list == ["text"]),
            Value::Object(map) => map.is_empty() || map.get("type").is_some_and(|kind| kind == "text"),
            Value::Bool(true) => false,
        };
        if !asks_nothing {
            return wrong(name, "is not supported here; leave it out");
        }
    }
    Ok(())
}

/// The fields of the body; a null is as good as none.
struct Fields<'a>(&'a Map<String, Value>);

impl Fields<'_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    fn number(&self, name: &str, range: std::ops::RangeInclusive<f64>) -> Parsed<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|number| range.contains(number)) {
            Some(number) => Ok(Some(number)),
            None if *range.start() == f64::MIN_POSITIVE => {
                wrong(name, format!("is {value}; it must be above 0 and at most {}", range.end()))
            }
            None => wrong(name, format!("is {value}; it must be a number from {} to {}", range.start(), range.end())),
        }
    }

    fn count(&self, name: &str, most: u64) -> Parsed<Option<u64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_u64().filter(|count| (1..=most).contains(count)) {
            Some(count) => Ok(Some(count)),
            None => wrong(name, format!("is {value}; it must be a whole number from 1 to {most}")),
        }
    }

    fn seed(&self) -> Parsed<Option<u64>> {
        let Some(value) = self.get("seed") else { return Ok(None) };
        match value.as_u64().or_else(|| value.as_i64().map(i64::cast_unsigned)) {
            Some(seed) => Ok(Some(seed)),
            None => wrong("seed", format!("is {value}; it must be a whole number of 64 bits")),
        }
    }

    fn flag(&self, name: &str) -> Parsed<bool> {
        match self.get(name) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => wrong(name, format!("is {value}; it must be true or false")),
        }
    }

    fn text(&self, name: &str) -> Parsed<Option<String>> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(value) => wrong(name, format!("is {value}; it must be a string")),
        }
    }

    fn stops(&self) -> Parsed<Vec<String>> {
        let list = match self.get("stop") {
            None => return Ok(vec![]),
            Some(Value::Array(list)) => list.clone(),
            Some(one) => vec![one.clone()],
        };
        let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        match list.iter().map(text).collect::<Option<Vec<_>>>().filter(|list| list.len() <= STOPS) {
            Some(list) => Ok(list),
            None => wrong("stop", format!("must be a string or a list of at most {STOPS}, none of them empty")),
        }
    }
}

/// One message; its pictures go behind those before it.
fn turn(message: &Value, index: usize, pictures: &mut Vec<Picture>) -> Parsed<Turn> {
    let place = format!("messages[{index}]");
    let role = match message["role"].as_str() {
        Some("system" | "developer") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => {
            let found = &message["role"];
            return wrong(&format!("{place}.role"), format!("is {found}; it must be system, user or assistant"));
        }
    };
    let place = format!("{place}.content");
    let parts = match &message["content"] {
        Value::String(text) => vec![Part::Text(text.clone())],
        Value::Array(parts) if !parts.is_empty() => {
            let part = |(at, part)| part_of(part, &format!("{place}[{at}]"), role, pictures);
            parts.iter().enumerate().map(part).collect::<Parsed<_>>()?
        }
        _ => return wrong(&place, "must be a string, or a list of parts of type `text` or `image_url`"),
    };
    Ok(Turn { role, parts })
}

fn part_of(part: &Value, place: &str, role: Role, pictures: &mut Vec<Picture>) -> Parsed<Part> {
    match part["type"].as_str() {
        Some("text") => match part["text"].as_str() {
            Some(text) => Ok(Part::Text(text.to_owned())),
            None => wrong(&format!("{place}.text"), "must be a string"),
        },
        Some("image_url") => {
            let place = format!("{place}.image_url.url");
            if role != Role::User {
                return wrong(&place, "is a picture in a turn that is not the user's; only the user shows pictures");
            }
            if pictures.len() == PICTURES {
                return wrong(&place, format!("is one picture too many: {PICTURES} at most in one request"));
            }
            let Some(url) = part["image_url"]["url"].as_str() else {
                return wrong(&place, "must be a string: a data URL");
            };
            pictures.push(Picture { bytes: data_of(url, &place)?, place });
            Ok(Part::Image)
        }
        _ => wrong(&format!("{place}.type"), format!("is {}; it must be `text` or `image_url`", part["type"])),
    }
}

/// The bytes of a data URL. Nothing is fetched: a server that follows addresses reaches what its clients cannot.
fn data_of(url: &str, place: &str) -> Parsed<Vec<u8>> {
    let Some(data) = url.strip_prefix("data:") else {
        return wrong(place, "is no data URL; pictures are not fetched here: send data:image/png;base64,... instead");
    };
    let Some((_, encoded)) = data.split_once(',').filter(|(head, _)| head.ends_with(";base64")) else {
        return wrong(place, "is a data URL without `;base64,`");
    };
    let bytes = STANDARD.decode(encoded.trim()).or_else(|_| STANDARD_NO_PAD.decode(encoded.trim()));
    match bytes {
        Ok(bytes) => Ok(bytes),
        Err(error) => wrong(place, format!("holds damaged base64: {error}")),
    }
}

impl Picture {
    fn decode(&self) -> Parsed<RgbImage> {
        let refuse = |error: ModelError| Refusal::wrong(format!("`{}`: {error}", self.place), Some(&self.place));
        let (width, height) = image::measure(&self.bytes).map_err(refuse)?;
        if u64::from(width) * u64::from(height) > PIXELS {
            let most = PIXELS >> 20;
            return wrong(
                &self.place,
                format!("is a picture of {width} x {height} pixels; scale it to {most} million or fewer"),
            );
        }
        image::decode(&self.bytes).map_err(refuse)
    }
}

impl Asked {
    /// Pictures to values, the conversation to tokens. `longest` holds where the request states no length.
    pub(super) fn prepare(self, vlm: &Vlm, longest: usize) -> Parsed<Prepared> {
        let pictures = self.pictures.iter().map(Picture::decode).collect::<Parsed<Vec<_>>>()?;
        let refuse = |error: ModelError| Refusal::wrong(format!("`messages`: {error}"), Some("messages"));
        let prompt = vlm.prompt(&self.turns, &pictures, true).map_err(refuse)?;
        let (used, most) = (prompt.ids.len(), vlm.config().text().max_position_embeddings);
        let room = most.saturating_sub(used);
        let wanted = self.longest.unwrap_or(longest.min(room));
        if wanted > room || room == 0 {
            return Err(Refusal {
                code: Some("context_length_exceeded"),
                ..Refusal::wrong(
                    format!(
                        "the messages have {used} tokens and {wanted} are asked for, but the model sees {most} at most; \
                         lower `max_tokens`, or send less text or smaller pictures"
                    ),
                    Some("messages"),
                )
            });
        }
        let sampling = Sampling { max_new_tokens: wanted, ..self.sampling };
        sampling.check().map_err(|error| Refusal::wrong(error.to_string(), None))?;
        Ok(Prepared { prompt: prompt.into(), sampling, seeds: self.seeds, stops: self.stops })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn told(mut change: Value) -> String {
        let mut body = json!({"messages": [{"role": "user", "content": "hello"}]});
        body.as_object_mut().unwrap().append(change.as_object_mut().unwrap());
        parse(body.to_string().as_bytes(), 0).map_or_else(|refusal| refusal.message, |_| "fine".to_owned())
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        for (change, message) in [
            (json!({}), "fine"),
            (json!({"temperature": null, "tools": [], "response_format": {"type": "text"}, "logprobs": false}), "fine"),
            (json!({"max_token": 3}), "did you mean `max_tokens`?"),
            (json!({"temperature": 3}), "`temperature` is 3; it must be a number from 0 to 2"),
            (json!({"top_p": 0}), "above 0"),
            (json!({"max_tokens": 0}), "`max_tokens` is 0"),
            (json!({"n": 99}), "from 1 to 16"),
            (json!({"seed": 1.5}), "`seed` is 1.5"),
            (json!({"seed": -1, "stop": "x"}), "fine"),
            (json!({"stop": [""]}), "`stop` must be"),
            (json!({"stream": "yes"}), "`stream` is \"yes\""),
            (json!({"tools": [{}]}), "`tools` is not supported here"),
            (json!({"messages": []}), "`messages` must be a list"),
            (json!({"messages": ["hello"]}), "`messages[0].role` is null"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "is \"tool\""),
            (json!({"messages": [{"role": "user"}]}), "`messages[0].content` must be"),
            (json!({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}), "`messages[0].content[0].type`"),
        ] {
            let said = told(change.clone());
            assert!(said.contains(message), "{change}: {said}");
        }
        assert!(parse(b"{", 0).is_err_and(|refusal| refusal.message.contains("no JSON")));
        assert!(parse(b"[1]", 0).is_err_and(|refusal| refusal.message.contains("must be a JSON object")));
    }

    #[test]
    fn pictures_come_as_data_only() {
        let shown = |url: &str, role: &str| {
            told(json!({"messages": [{"role": role, "content": [{"type": "image_url", "image_url": {"url": url}}]}]}))
        };
        assert_eq!(shown("data:image/png;base64,AAAA", "user"), "fine");
        assert!(shown("https://example.org/a.png", "user").contains("pictures are not fetched here"));
        assert!(shown("file:///etc/passwd", "user").contains("pictures are not fetched here"));
        assert!(shown("data:image/png,abc", "user").contains("without `;base64,`"));
        assert!(shown("data:image/png;base64,A*", "user").contains("damaged base64"));
        assert!(shown("data:image/png;base64,AAAA", "system").contains("only the user shows pictures"));
    }
}
