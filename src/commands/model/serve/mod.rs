//! `mpcc model serve`: OpenAI's chat completions over a model in this process.
//!
//! | file | what |
//! |---|---|
//! | [`guard`] | who may ask: the Host header, the bearer token |
//! | [`request`] | the body as sent, to what the model is asked; everything else is refused with what to do |
//! | [`queue`] | one thread that answers; what comes meanwhile joins what is in work |
//! | [`stops`] | stop strings in a text that grows |
//! | [`reply`] | answers and errors as OpenAI writes them, whole or as server-sent events |
//!
//! The server listens on the loopback unless told otherwise. Any page in a browser on this host could reach it there, so a request
//! must name this host (a page that was rebound to 127.0.0.1 names its own) and carry the token.

mod guard;
mod queue;
mod reply;
mod request;
mod stops;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use mpcc_stages::models::vlm::Vlm;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Notify, Semaphore};

use self::guard::Guard;
use self::queue::Queue;
use self::reply::Refusal;
use super::args::ServeArgs;
use super::place::{find, load, name};
use crate::commands::Answer;
use crate::environment::variable;
use crate::report::{DONE, Failure};
use crate::ui::{complain, say};

/// Bytes of a request's body at most: some large pictures as base64.
const BODY: usize = 64 << 20;
/// Requests whose pictures are decoded at once: each may take much memory.
const PREPARING: usize = 2;
/// Interrupted for good.
const INTERRUPTED: u8 = 130;

/// What every request sees.
struct Service {
    vlm: Arc<Vlm>,
    name: String,
    created: i64,
    guard: Guard,
    queue: Queue,
    /// Longest answer where a request states none.
    longest: usize,
    preparing: Semaphore,
    /// Requests so far; gives each an id, and a seed where it states none.
    count: AtomicU64,
}

/// Loads the model and serves it until a signal comes.
pub(super) fn serve(args: &ServeArgs) -> Answer {
    let token = token(args)?;
    let dir = find(&args.place.model)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| Failure::machine(format_args!("no runtime: {error}")))?;
    let address = SocketAddr::new(args.host, args.port);
    // Before the model is loaded: a port that is taken is told at once.
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(|error| {
        Failure::machine(format_args!(
            "cannot listen at {address}: {error}; --port names another, 0 takes any free one"
        ))
    })?;
    let address = listener.local_addr().map_err(|error| Failure::machine(error.to_string()))?;
    let (vlm, _) = load(&dir, &args.place, &args.device)?;
    let (vlm, stopping) = (Arc::new(vlm), Arc::new(AtomicBool::new(false)));
    let service = Arc::new(Service {
        queue: Queue::start(vlm.clone(), stopping.clone(), args.queue.into())?,
        vlm,
        name: args.name.clone().unwrap_or_else(|| name(&args.place.model)),
        created: jiff::Timestamp::now().as_second(),
        guard: Guard::new(address.ip(), &args.hosts, token.clone()),
        longest: args.max_new_tokens as usize,
        preparing: Semaphore::new(PREPARING),
        count: AtomicU64::new(0),
    });
    announce(args, &service, address, &token);
    let code = runtime.block_on(until_stopped(listener, service, stopping));
    // Whoever did not end after a second signal is not waited for.
    runtime.shutdown_background();
    code
}

/// The token that clients must send: of the variable named, else made for this time.
fn token(args: &ServeArgs) -> Result<String, Failure> {
    let Some(name) = &args.token_env else { return generated() };
    let token = variable(name).ok_or_else(|| {
        Failure::wrong(format_args!("environment variable {name} is not set; it must hold the token that clients send"))
    })?;
    let plain = token.bytes().all(|byte| byte.is_ascii_graphic());
    if plain { Ok(token) } else { Err(Failure::wrong(format_args!("{name} holds blanks or characters beyond ASCII"))) }
}

fn generated() -> Result<String, Failure> {
    use std::io::Read;
    let (path, mut bytes) = (std::path::Path::new("/dev/urandom"), [0_u8; 24]);
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    read.map_err(|error| Failure::io(path, &error))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Says where the server is. A token that the caller chose is not repeated.
fn announce(args: &ServeArgs, service: &Service, address: SocketAddr, token: &str) {
    let base = format!("http://{address}/v1");
    let shown = args.token_env.is_none().then_some(token);
    if args.json {
        return say(json!({"base_url": base, "model": service.name, "token": shown}));
    }
    say(format_args!("serving {} at {base}", service.name));
    match (&args.token_env, shown) {
        (Some(name), _) => say(format_args!("token: that of {name}")),
        (None, token) => say(format_args!("token: {}", token.unwrap_or_default())),
    }
    if !address.ip().is_loopback() {
        complain("warning: other hosts reach this server; what they send and get is not encrypted");
    }
    say("Ctrl-C ends it");
}

/// Serves until a signal; a second one does not wait for what is under way.
async fn until_stopped(listener: TcpListener, service: Arc<Service>, stopping: Arc<AtomicBool>) -> Answer {
    let machine = |error: std::io::Error| Failure::machine(format_args!("the server: {error}"));
    let mut interrupts = signal(SignalKind::interrupt()).map_err(machine)?;
    let mut terminations = signal(SignalKind::terminate()).map_err(machine)?;
    let end = Arc::new(Notify::new());
    let ended = end.clone();
    let server = axum::serve(listener, router(service)).with_graceful_shutdown(async move { ended.notified().await });
    let signals = async {
        for _ in 0..2 {
            tokio::select! { _ = interrupts.recv() => (), _ = terminations.recv() => () }
            stopping.store(true, Ordering::SeqCst);
            end.notify_one();
        }
    };
    tokio::select! {
        result = server.into_future() => result.map(|()| DONE).map_err(machine),
        () = signals => Ok(INTERRUPTED),
    }
}

fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .fallback(async || Refusal::not_found("there are /v1/chat/completions, /v1/models and /health"))
        .method_not_allowed_fallback(async || Refusal::method())
        .layer(DefaultBodyLimit::max(BODY))
        .layer(axum::middleware::from_fn_with_state(service.clone(), guard::check))
        .with_state(service)
}

async fn health(State(service): State<Arc<Service>>) -> Response {
    axum::Json(json!({"status": "ok", "model": service.name})).into_response()
}

impl Service {
    fn entry(&self) -> Value {
        json!({"id": self.name, "object": "model", "created": self.created, "owned_by": "mpcc"})
    }
}

async fn models(State(service): State<Arc<Service>>) -> Response {
    axum::Json(json!({"object": "list", "data": [service.entry()]})).into_response()
}

async fn model(State(service): State<Arc<Service>>, Path(id): Path<String>) -> Response {
    if id == service.name {
        axum::Json(service.entry()).into_response()
    } else {
        no_model(&service, &id).into_response()
    }
}

fn no_model(service: &Service, id: &str) -> Refusal {
    let message = format!("there is no model `{id}` here; the one served is `{}`", service.name);
    Refusal { status: 404, message, param: Some("model".to_owned()), code: Some("model_not_found") }
}

async fn chat(State(service): State<Arc<Service>>, body: Result<axum::body::Bytes, BytesRejection>) -> Response {
    match answer(service, body).await {
        Ok(response) => response,
        Err(refusal) => refusal.into_response(),
    }
}

async fn answer(service: Arc<Service>, body: Result<axum::body::Bytes, BytesRejection>) -> Result<Response, Refusal> {
    let body = body.map_err(|rejection| match rejection.status().as_u16() {
        413 => Refusal::too_large(format!("the body has over {} MiB; send smaller pictures", BODY >> 20)),
        _ => Refusal::wrong(format!("the body cannot be read: {rejection}"), None),
    })?;
    let number = service.count.fetch_add(1, Ordering::Relaxed);
    let asked = request::parse(&body, number)?;
    drop(body);
    if let Some(id) = asked.model.as_ref().filter(|id| **id != service.name) {
        return Err(no_model(&service, id));
    }
    let form = reply::Form {
        id: format!("chatcmpl-{:x}-{number:x}", service.created),
        created: jiff::Timestamp::now().as_second(),
        model: service.name.clone(),
        with_usage: asked.with_usage,
        choices: asked.seeds.len(),
    };
    let stream = asked.stream;
    let busy = |_| Refusal::stopping();
    let (vlm, longest) = (service.vlm.clone(), service.longest);
    // The permit is for preparing alone: held through a whole answer, it would keep all but two of them waiting.
    let prepared = {
        let _permit = service.preparing.acquire().await.map_err(busy)?;
        tokio::task::spawn_blocking(move || asked.prepare(&vlm, longest)).await
    };
    let prepared = prepared.map_err(|_| Refusal::internal("the request broke the server's preparation"))??;
    let prompt_tokens = prepared.prompt.ids.len();
    let events = service.queue.push(prepared)?;
    if stream {
        Ok(reply::stream(form, prompt_tokens, events))
    } else {
        reply::whole(form, prompt_tokens, events).await
    }
}
