//! One request to a server that speaks OpenAI's chat completions: vLLM, llama.cpp, Ollama, `transformers serve`, OpenAI itself.
//!
//! | the server | the request |
//! |---|---|
//! | answers | is over |
//! | 408, 409, 425, 429, 5xx; a refused or cut connection; nothing within `timeout`; 200 with something else than an answer | is worth sending again ([`Failure::Again`]), after `Retry-After` if it says so |
//! | 401, 403, 404, a redirect, a used-up account | stops the stage: every other request would fare the same ([`Failure::Server`]) |
//! | any other 4xx | fails alone ([`Failure::Request`]) |
//!
//! The key is sent in one header and appears nowhere else. Pictures travel as data URLs: a picture that is shown as it is keeps
//! its file's own bytes, a masked one becomes a PNG.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mpcc_engine::asking::quota::OPENAI;
use mpcc_engine::stage::{Context, ModelInput, StageError};
use mpcc_models::sample::Sampling;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// How long a request may take when the model states no `timeout`, seconds.
const TIMEOUT_S: f64 = 120.0;
/// How much of a strange answer is shown.
const SHOWN: usize = 200;

/// A server and what every request to it says.
pub struct Server {
    http: reqwest::Client,
    url: Url,
    key: Option<String>,
    key_name: String,
    model: String,
    extra: Map<String, Value>,
    timeout: Duration,
}

/// What a server said.
#[derive(Clone, Debug, PartialEq)]
pub struct Spoken {
    /// The text.
    pub text: String,
    /// Whether the model ended by itself.
    pub finished: bool,
    /// Tokens of prompt and answer as the server counts them; none when it does not.
    pub usage: Option<(u32, u32)>,
    /// The model that the server says it ran.
    pub served: Option<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub enum Failure {
    /// Worth sending again.
    Again {
        /// What happened.
        why: String,
        /// How long the server wants to be left alone.
        after: Option<Duration>,
        /// Whether it may have been answered, and paid for, all the same.
        unheard: bool,
    },
    /// This request is refused.
    Request(String),
    /// Any request would be.
    Server(String),
}

/// A picture as a data URL.
pub fn data_url(bytes: &[u8]) -> String {
    let kind = match bytes {
        [0x89, b'P', b'N', b'G', ..] => "png",
        [b'G', b'I', b'F', ..] => "gif",
        [b'R', b'I', b'F', b'F', ..] => "webp",
        _ => "jpeg",
    };
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}

impl Server {
    /// The server of a model with `provider: openai`.
    ///
    /// # Errors
    /// Its settings are malformed, or its key is not there.
    pub fn new(ctx: &Context, model: &ModelInput) -> Result<Self, StageError> {
        let wrong = |message: String| StageError::invalid(format!("model `{}`: {message}", model.name));
        let text = |key: &str| model.settings.get(key).and_then(Value::as_str);
        let base = text("base_url").unwrap_or(OPENAI);
        let url = Url::parse(&format!("{}/chat/completions", base.trim_end_matches('/')));
        let url = url.map_err(|error| wrong(format!("`base_url: {base}` is no URL: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(wrong(format!(
                "`base_url: {base}` is no address of a server; it begins with http:// or https://"
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong(
                "`base_url` holds a user or password; name a variable in `api_key_env` instead".to_owned(),
            ));
        }
        let key_name = text("api_key_env").unwrap_or_default().to_owned();
        // Keys are pasted with their line ends.
        let key = ctx.asking.secret(&key_name).map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        // A rehearsal sends nothing.
        if !key_name.is_empty() && key.is_none() && !ctx.asking.is_rehearsal() {
            return Err(wrong(format!("environment variable {key_name} with its key is not set")));
        }
        let timeout = model.settings.get("timeout").and_then(Value::as_f64).unwrap_or(TIMEOUT_S);
        let extra = model.settings.get("request").and_then(Value::as_object).cloned().unwrap_or_default();
        // The client takes the process's provider of TLS; an error says that one is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(Duration::from_secs(10))
            .build()
            .map_err(|error| StageError::Machine(format!("no HTTP client: {error}")))?;
        let name = text("model").unwrap_or(&model.name).to_owned();
        Ok(Self { http, url, key, key_name, model: name, extra, timeout: Duration::from_secs_f64(timeout) })
    }

    /// The host, for messages.
    pub fn host(&self) -> String {
        let port = self.url.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}", self.url.host_str().unwrap_or_default())
    }

    /// The body of a request: pictures first, then text. What the model's `request` states wins.
    pub fn body(
        &self,
        system: Option<&str>,
        user: &str,
        pictures: &[String],
        sampling: &Sampling,
        seed: u64,
    ) -> Vec<u8> {
        let image = |url: &String| json!({ "type": "image_url", "image_url": { "url": url } });
        let mut parts: Vec<Value> = pictures.iter().map(image).collect();
        parts.push(json!({ "type": "text", "text": user }));
        let mut messages: Vec<Value> =
            system.map(|text| json!({ "role": "system", "content": text })).into_iter().collect();
        messages.push(json!({ "role": "user", "content": parts }));
        let mut body = json!({ "model": self.model, "messages": messages, "temperature": sampling.temperature });
        let fields = body.as_object_mut().expect("it is written as a map");
        if !self.extra.contains_key("max_completion_tokens") {
            fields.insert("max_tokens".to_owned(), json!(sampling.max_new_tokens));
        }
        if sampling.temperature > 0.0 {
            // Servers take seeds of 32 bits, some of them signed.
            fields.insert("seed".to_owned(), json!(seed & 0x7fff_ffff));
        }
        if sampling.top_p < 1.0 {
            fields.insert("top_p".to_owned(), json!(sampling.top_p));
        }
        // Not OpenAI's own, but of the servers that run open models.
        if let Some(top_k) = sampling.top_k {
            fields.insert("top_k".to_owned(), json!(top_k));
        }
        if sampling.repetition_penalty != 1.0 {
            fields.insert("repetition_penalty".to_owned(), json!(sampling.repetition_penalty));
        }
        fields.extend(self.extra.clone());
        serde_json::to_vec(&body).expect("plain data")
    }

    /// Sends a request and waits for its answer, at most as long as the model's `timeout`.
    pub async fn ask(&self, body: Vec<u8>) -> Result<Spoken, Failure> {
        match tokio::time::timeout(self.timeout, self.exchange(body)).await {
            Ok(answer) => answer,
            Err(_) => {
                let why = format!("{} did not answer within {} s", self.host(), self.timeout.as_secs_f64());
                Err(Failure::Again { why, after: None, unheard: true })
            }
        }
    }

    async fn exchange(&self, body: Vec<u8>) -> Result<Spoken, Failure> {
        let request = self.http.post(self.url.clone()).header("content-type", "application/json").body(body);
        let request = match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        };
        let response = request.send().await.map_err(|error| self.broken(&error))?;
        let (status, after) = (response.status(), retry_after(response.headers()));
        let body = self.read(response).await?;
        if status.is_success() { self.understand(&body) } else { Err(self.refusal(status, after, &body)) }
    }

    async fn read(&self, response: Response) -> Result<Vec<u8>, Failure> {
        let body = response.bytes().await;
        body.map(|bytes| bytes.to_vec()).map_err(|error| match self.broken(&error) {
            Failure::Again { why, after, .. } => Failure::Again { why, after, unheard: true },
            other => other,
        })
    }

    fn broken(&self, error: &reqwest::Error) -> Failure {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        if error.is_builder() {
            return Failure::Server(format!("no request can be made for {}: {cause}", self.host()));
        }
        let what = if error.is_connect() { "cannot be reached" } else { "broke off" };
        Failure::Again { why: format!("{} {what}: {cause}", self.host()), after: None, unheard: !error.is_connect() }
    }

    fn understand(&self, body: &[u8]) -> Result<Spoken, Failure> {
        // It says that it has answered, so it may want to be paid.
        let strange = |what: &str| Failure::Again {
            why: format!("{} sent {what}: {}", self.host(), shown(body)),
            after: None,
            unheard: true,
        };
        let answer: Completion = serde_json::from_slice(body).map_err(|_| strange("no completion"))?;
        let choice = answer.choices.into_iter().next().ok_or_else(|| strange("no choice"))?;
        // What a model refuses to say is an answer too: asking again would get the same.
        let text = choice.message.content.or(choice.message.refusal).unwrap_or_default();
        Ok(Spoken {
            text,
            finished: choice.finish_reason.as_deref() == Some("stop"),
            usage: answer.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens)),
            served: answer.model,
        })
    }

    fn refusal(&self, status: StatusCode, after: Option<Duration>, body: &[u8]) -> Failure {
        let says = format!("{} answered {status}: {}", self.host(), told(body));
        match status.as_u16() {
            401 | 403 => Failure::Server(match self.key_name.as_str() {
                "" => format!("{says}. It wants a key: name its variable in `api_key_env`"),
                name => format!("{says}. Is the key in {name} right?"),
            }),
            404 => Failure::Server(format!("{says}. Are `base_url` and `model` right?")),
            300..=399 => {
                Failure::Server(format!("{says}. Set `base_url` to where it leads; keys do not follow redirects"))
            }
            429 if String::from_utf8_lossy(body).contains("insufficient_quota") => Failure::Server(says),
            // Others fare the same for a moment.
            429 if after.is_none() => Failure::Again { why: says, after: Some(Duration::from_secs(1)), unheard: false },
            408 | 409 | 425 | 429 | 500.. => Failure::Again { why: says, after, unheard: false },
            _ => Failure::Request(says),
        }
    }
}

#[derive(Deserialize)]
struct Completion {
    choices: Vec<Choice>,
    usage: Option<Tokens>,
    model: Option<String>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
    refusal: Option<String>,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    prompt_tokens: u32,
    #[serde(default)]
    completion_tokens: u32,
}

/// How long the headers ask to wait: milliseconds (Azure, OpenAI), seconds, or a date, told by the server's own clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let number = |text: &str| text.trim().parse::<f64>().ok().filter(|number| (0.0..1e9).contains(number));
    if let Some(milliseconds) = text("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64(milliseconds / 1000.0));
    }
    let after = text(RETRY_AFTER.as_str())?;
    number(after).map(Duration::from_secs_f64).or_else(|| {
        let date = |text: &str| httpdate::parse_http_date(text).ok();
        date(after)?.duration_since(date(text("date")?)?).ok()
    })
}

/// The message of an error body, or its beginning.
fn told(body: &[u8]) -> String {
    let value: Value = serde_json::from_slice(body).unwrap_or_default();
    let message = [value.pointer("/error/message"), value.get("message"), value.get("detail"), value.get("error")];
    match message.into_iter().flatten().find_map(Value::as_str) {
        Some(message) => message.to_owned(),
        None => shown(body),
    }
}

fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("`{}...`", &line[..end]),
        None => format!("`{line}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::{HeaderName, HeaderValue};

    fn server(extra: Value) -> Server {
        Server {
            http: reqwest::Client::new(),
            url: Url::parse("http://host:1/v1/chat/completions").unwrap(),
            key: Some("secret-key".to_owned()),
            key_name: "KEY".to_owned(),
            model: "gpt".to_owned(),
            extra: extra.as_object().cloned().unwrap_or_default(),
            timeout: Duration::from_secs(1),
        }
    }

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_says_what_the_sampling_says_and_settings_win() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let sampling = Sampling { top_p: 0.9, ..Sampling::at(0.7, 64) };
        let body = server(json!({ "max_completion_tokens": 99, "temperature": 1 }));
        let body = body.body(Some("be brief"), "what is it?", &[data_url(b"\x89PNG")], &sampling, u64::MAX);
        let body: Value = serde_json::from_slice(&body).unwrap();
        let expected = json!({
            "model": "gpt", "temperature": 1, "seed": 0x7fff_ffff_u32, "top_p": 0.9, "max_completion_tokens": 99,
            "messages": [
                { "role": "system", "content": "be brief" },
                { "role": "user", "content": [
                    { "type": "image_url", "image_url": { "url": "data:image/png;base64,iVBORw==" } },
                    { "type": "text", "text": "what is it?" },
                ] },
            ],
        });
        assert_eq!(body, expected);
        let greedy: Value =
            serde_json::from_slice(&server(json!({})).body(None, "x", &[], &Sampling::greedy(8), 1)).unwrap();
        assert_eq!((greedy.get("seed"), &greedy["max_tokens"]), (None, &json!(8)));
    }

    #[test]
    fn waits_are_read_in_every_form() {
        let wait = |pairs: &[(&'static str, &'static str)]| retry_after(&headers(pairs)).map(|wait| wait.as_millis());
        assert_eq!(wait(&[("retry-after", "2")]), Some(2000));
        assert_eq!(wait(&[("retry-after", "2"), ("retry-after-ms", "150")]), Some(150));
        let dates = [("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT"), ("date", "Wed, 21 Oct 2015 07:28:00 GMT")];
        assert_eq!(wait(&dates), Some(30_000));
        assert_eq!((wait(&[("retry-after", "soon")]), wait(&[])), (None, None));
    }

    #[test]
    fn answers_and_refusals_are_told_apart() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let server = server(json!({}));
        let good = br#"{"model":"gpt-1","choices":[{"message":{"content":"cup"},"finish_reason":"stop"}],"usage":{"prompt_tokens":7,"completion_tokens":2}}"#;
        let spoken = server.understand(good).unwrap();
        assert_eq!((spoken.text.as_str(), spoken.finished, spoken.usage), ("cup", true, Some((7, 2))));
        for strange in [&b"<html>busy</html>"[..], b"", b"{\"choices\":[]}", b"{\"choi"] {
            assert!(matches!(server.understand(strange), Err(Failure::Again { .. })));
        }
        let told =
            |status: u16, body: &str| server.refusal(StatusCode::from_u16(status).unwrap(), None, body.as_bytes());
        assert!(matches!(told(500, "<html>"), Failure::Again { .. }));
        assert!(matches!(told(429, "slow down"), Failure::Again { .. }));
        assert!(matches!(told(429, r#"{"error":{"code":"insufficient_quota","message":"pay"}}"#), Failure::Server(_)));
        assert!(matches!(told(302, ""), Failure::Server(_)));
        let Failure::Server(key) = told(401, r#"{"error":{"message":"bad key"}}"#) else { panic!("it ends the stage") };
        assert_eq!(key, "host:1 answered 401 Unauthorized: bad key. Is the key in KEY right?");
        assert!(matches!(told(400, "too large"), Failure::Request(_)));
    }
}
