//! Answers and errors as OpenAI writes them.

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;

use super::queue::Event;

/// Why there is no answer.
#[derive(Clone, Debug)]
pub(super) struct Refusal {
    /// The HTTP status.
    pub(super) status: u16,
    /// What is wrong and what to do.
    pub(super) message: String,
    /// The field that is wrong.
    pub(super) param: Option<String>,
    /// A word for programs.
    pub(super) code: Option<&'static str>,
}

impl Refusal {
    fn new(status: u16, message: impl Into<String>, code: Option<&'static str>) -> Self {
        Self { status, message: message.into(), param: None, code }
    }

    /// The request makes no sense.
    pub(super) fn wrong(message: impl Into<String>, param: Option<&str>) -> Self {
        Self { param: param.map(str::to_owned), ..Self::new(400, message, None) }
    }

    /// The body is too large.
    pub(super) fn too_large(message: impl Into<String>) -> Self {
        Self::new(413, message, Some("request_too_large"))
    }

    /// The Host header names somebody else.
    pub(super) fn host(message: impl Into<String>) -> Self {
        Self::new(403, message, Some("host_not_allowed"))
    }

    /// The token is wrong.
    pub(super) fn key(message: &str) -> Self {
        Self::new(401, message, Some("invalid_api_key"))
    }

    /// There is no such place.
    pub(super) fn not_found(message: &str) -> Self {
        Self::new(404, message, Some("not_found"))
    }

    /// The place takes another method.
    pub(super) fn method() -> Self {
        let message = "this place takes another method: POST for /v1/chat/completions, GET for the others";
        Self::new(405, message, Some("method_not_allowed"))
    }

    /// Too many wait.
    pub(super) fn busy() -> Self {
        Self::new(429, "too many requests wait; send this one again in a moment", Some("busy"))
    }

    /// The server ends.
    pub(super) fn stopping() -> Self {
        Self::new(503, "the server is being stopped", Some("stopping"))
    }

    /// A mistake of ours.
    pub(super) fn internal(message: &str) -> Self {
        Self::new(500, message, Some("internal_error"))
    }

    fn json(&self) -> Value {
        let kind = match self.status {
            401 => "authentication_error",
            403 => "permission_error",
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        };
        json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.json())).into_response();
        let headers = response.headers_mut();
        if self.status == 429 {
            headers.insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// What all parts of one answer have in common.
pub(super) struct Form {
    /// The answer's id.
    pub(super) id: String,
    /// When it was asked for, in seconds since 1970.
    pub(super) created: i64,
    /// The model's name.
    pub(super) model: String,
    /// Whether counts end a stream.
    pub(super) with_usage: bool,
    /// Number of choices.
    pub(super) choices: usize,
}

impl Form {
    fn around(&self, object: &str, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created, "model": self.model, "choices": choices,
        })
    }

    fn piece(&self, choice: usize, delta: Value, reason: Option<&str>) -> String {
        let choice = json!({"index": choice, "delta": delta, "logprobs": null, "finish_reason": reason});
        let mut piece = self.around("chat.completion.chunk", vec![choice]);
        if self.with_usage {
            piece["usage"] = Value::Null;
        }
        line(&piece)
    }
}

fn usage(prompt: usize, completion: usize) -> Value {
    json!({"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion})
}

fn reason(by_itself: bool) -> &'static str {
    if by_itself { "stop" } else { "length" }
}

fn line(data: &Value) -> String {
    format!("data: {data}\n\n")
}

/// The answer when it is complete.
pub(super) async fn whole(
    form: Form,
    prompt: usize,
    mut events: UnboundedReceiver<Event>,
) -> Result<Response, Refusal> {
    let mut texts = vec![String::new(); form.choices];
    let mut ends = vec![None; form.choices];
    let mut drawn = 0;
    while ends.iter().any(Option::is_none) {
        match events.recv().await {
            Some(Event::Text(choice, text)) => texts[choice].push_str(&text),
            Some(Event::Ended { choice, tokens, by_itself }) => {
                ends[choice] = Some(reason(by_itself));
                drawn += tokens;
            }
            Some(Event::Failed(refusal)) => return Err(refusal),
            None => return Err(Refusal::stopping()),
        }
    }
    let choice = |(index, (text, end)): (usize, (String, Option<&str>))| {
        let message = json!({"role": "assistant", "content": text, "refusal": null});
        json!({"index": index, "message": message, "logprobs": null, "finish_reason": end})
    };
    let mut answer = form.around("chat.completion", texts.into_iter().zip(ends).enumerate().map(choice).collect());
    answer["usage"] = usage(prompt, drawn);
    Ok(axum::Json(answer).into_response())
}

/// Where a stream is.
struct Streaming {
    form: Form,
    prompt: usize,
    events: UnboundedReceiver<Event>,
    open: usize,
    drawn: usize,
    step: Step,
}

#[derive(Clone, Copy, PartialEq)]
enum Step {
    Begin,
    Within,
    End,
}

/// The answer in pieces, as server-sent events.
pub(super) fn stream(form: Form, prompt: usize, events: UnboundedReceiver<Event>) -> Response {
    let open = form.choices;
    let start = Streaming { form, prompt, events, open, drawn: 0, step: Step::Begin };
    let pieces = unfold(start, |mut state| async {
        let piece = state.next().await?;
        Some((Ok::<_, std::convert::Infallible>(piece), state))
    });
    let headers = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
    (headers, Body::from_stream(pieces)).into_response()
}

impl Streaming {
    async fn next(&mut self) -> Option<String> {
        match self.step {
            Step::Begin => {
                self.step = Step::Within;
                let begin = json!({"role": "assistant", "content": ""});
                Some((0..self.form.choices).map(|choice| self.form.piece(choice, begin.clone(), None)).collect())
            }
            Step::Within if self.open == 0 => {
                self.step = Step::End;
                let mut end = String::new();
                if self.form.with_usage {
                    let mut counts = self.form.around("chat.completion.chunk", vec![]);
                    counts["usage"] = usage(self.prompt, self.drawn);
                    end = line(&counts);
                }
                Some(end + "data: [DONE]\n\n")
            }
            Step::Within => Some(match self.events.recv().await {
                Some(Event::Text(choice, text)) => self.form.piece(choice, json!({"content": text}), None),
                Some(Event::Ended { choice, tokens, by_itself }) => {
                    self.open -= 1;
                    self.drawn += tokens;
                    self.form.piece(choice, json!({}), Some(reason(by_itself)))
                }
                Some(Event::Failed(refusal)) => self.broken(&refusal),
                None => self.broken(&Refusal::stopping()),
            }),
            Step::End => None,
        }
    }

    /// The status went out long ago: an error is an event of its own, and no [DONE] follows.
    fn broken(&mut self, refusal: &Refusal) -> String {
        self.step = Step::End;
        line(&refusal.json())
    }
}
