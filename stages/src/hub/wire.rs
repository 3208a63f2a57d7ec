//! The three calls, and what is made of their failures.

use std::collections::BTreeSet;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_LENGTH, ETAG, HeaderMap, RANGE};
use reqwest::redirect::Policy;
use reqwest::{Client, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

use super::HubError;
use super::blob::Kind;
use crate::provider::openai::retry_after;

/// Tries without a byte in between.
const TRIES: u32 = 6;
/// The pause before the second try; it doubles, up to [`LONGEST`].
const PAUSE: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(20);
/// The longest pause that a server may ask for; it is asked again then, whatever it wants.
const OBEYED: Duration = Duration::from_secs(600);
/// Redirects in a row.
const REDIRECTS: usize = 8;
/// How long nothing may come.
const SILENCE: Duration = Duration::from_secs(60);

/// A hub's address and the way to it.
pub(super) struct Wire {
    endpoint: Url,
    token: Option<String>,
    /// Follows within the endpoint's host alone: what a redirect says about a file is said by the endpoint.
    near: Client,
    /// Follows anywhere that is as safe.
    far: Client,
    /// Told of each pause that the server asks for, before it.
    pub(super) on_wait: Box<OnWait>,
}

/// Takes why there is a pause, and how long it is.
pub(super) type OnWait = dyn Fn(&str, Duration) + Send + Sync;

/// A revision as the hub lists it.
pub(super) struct Listed {
    /// 40 hexadecimal digits.
    pub(super) commit: String,
    pub(super) files: BTreeSet<String>,
}

/// What the hub says about a file. The etag is fit for a file name.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) etag: String,
    pub(super) size: u64,
}

/// Why a request brought nothing.
pub(super) enum Trouble {
    /// Worth another try.
    Passing {
        /// What happened.
        why: String,
        /// How long the server wants to be left alone.
        after: Option<Duration>,
    },
    /// Every other try would fare the same.
    Final(HubError),
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Self {
        Self::Final(error)
    }
}

/// Tries that are left.
pub(super) struct Patience {
    left: u32,
    pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { left: TRIES - 1, pause: PAUSE }
    }
}

impl Patience {
    /// How long to wait for the next try: as long as the server wants, else as it has grown. Nothing if there is none left.
    fn next(&mut self, after: Option<Duration>) -> Option<Duration> {
        self.left = self.left.checked_sub(1)?;
        let pause = after.map_or(self.pause, |after| after.min(OBEYED));
        self.pause = (2 * self.pause).min(LONGEST);
        Some(pause)
    }
}

impl Wire {
    pub(super) fn new(endpoint: &str, token: Option<String>) -> Result<Self, HubError> {
        let wrong = |why: &str| HubError::Endpoint(format!("HF_ENDPOINT is {endpoint}: {why}"));
        let url = Url::parse(endpoint).map_err(|error| wrong(&format!("it is no URL: {error}")))?;
        let Some(host) = url.host_str().filter(|_| matches!(url.scheme(), "http" | "https")) else {
            return Err(wrong("it is no address of a server; it begins with http:// or https://"));
        };
        let here = ["localhost", "127.0.0.1", "[::1]"].contains(&host);
        if token.is_some() && url.scheme() == "http" && !here {
            return Err(wrong("HF_TOKEN would travel unencrypted; take https, or unset HF_TOKEN"));
        }
        // The client takes the process's provider of TLS; an error says that one is installed already, which will do.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = |near| {
            let builder = Client::builder().redirect(policy(near)).connect_timeout(Duration::from_secs(10));
            let builder = builder.read_timeout(SILENCE);
            // A proxy has another loopback.
            let builder = if here { builder.no_proxy() } else { builder };
            builder.build().map_err(|error| HubError::Unreachable { why: format!("no HTTP client: {error}") })
        };
        let (near, far) = (client(true)?, client(false)?);
        Ok(Self { endpoint: url, token, near, far, on_wait: Box::new(|_, _| {}) })
    }

    /// The endpoint's host, for messages.
    pub(super) fn host(&self) -> String {
        let port = self.endpoint.port().map_or_else(String::new, |port| format!(":{port}"));
        format!("{}{port}", self.endpoint.host_str().unwrap_or_default())
    }

    fn url(&self, segments: &[&str]) -> Result<Url, HubError> {
        let mut url = self.endpoint.clone();
        url.set_query(None);
        let path = url.path_segments_mut();
        path.map_err(|()| HubError::Endpoint(format!("HF_ENDPOINT is {}", self.endpoint)))?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }

    /// Where a file's bytes are.
    pub(super) fn file(&self, id: &str, commit: &str, file: &str) -> Result<Url, HubError> {
        let mut segments: Vec<&str> = id.split('/').collect();
        segments.extend(["resolve", commit, file]);
        self.url(&segments)
    }

    /// What a revision is.
    pub(super) async fn list(&self, id: &str, revision: &str) -> Result<Listed, HubError> {
        let mut segments = vec!["api", "models"];
        segments.extend(id.split('/').chain(["revision", revision]));
        let url = self.url(&segments)?;
        self.patiently(async || {
            let response = self.send(self.near.get(url.clone())).await?;
            if !response.status().is_success() {
                return Err(self.refusal(response).await);
            }
            let body = response.bytes().await.map_err(|error| self.broken(&error))?;
            self.listed(&body).ok_or_else(|| Trouble::Final(self.strange("sent no list of a model's files")))
        })
        .await
    }

    fn listed(&self, body: &[u8]) -> Option<Listed> {
        let body: Value = serde_json::from_slice(body).ok()?;
        let commit = body["sha"].as_str().filter(|sha| is_commit(sha))?.to_owned();
        let name = |file: &Value| file["rfilename"].as_str().map(str::to_owned);
        Some(Listed { commit, files: body["siblings"].as_array()?.iter().filter_map(name).collect() })
    }

    /// What the hub says about a file of a commit.
    pub(super) async fn look(&self, url: &Url, commit: &str) -> Result<Known, HubError> {
        self.patiently(async || {
            let response = self.send(self.near.head(url.clone())).await?;
            // A redirect to another host has the file, and this one's word on it.
            if !response.status().is_success() && !response.status().is_redirection() {
                return Err(self.refusal(response).await);
            }
            let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
            if let Some(other) = text("x-repo-commit").filter(|other| *other != commit) {
                return Err(self.strange(&format!("was asked for commit {commit} and answers for {other}")).into());
            }
            known(response.headers(), response.status().is_redirection())
                .map_err(|lacks| self.strange(&format!("{lacks} of {url}")).into())
        })
        .await
    }

    /// The bytes of a file from one of them on.
    pub(super) async fn get(&self, url: &Url, from: u64) -> Result<Response, Trouble> {
        let request = self.far.get(url.clone());
        self.send(if from > 0 { request.header(RANGE, format!("bytes={from}-")) } else { request }).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, Trouble> {
        // Packed bytes could not be gone on with.
        let request = request.header(ACCEPT_ENCODING, "identity");
        let request = match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        };
        request.send().await.map_err(|error| self.broken(&error))
    }

    async fn patiently<T>(&self, mut call: impl AsyncFnMut() -> Result<T, Trouble>) -> Result<T, HubError> {
        let mut patience = Patience::default();
        loop {
            match call().await {
                Ok(value) => return Ok(value),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing { why, after }) => self.wait(&mut patience, why, after).await?,
            }
        }
    }

    /// Waits for the next try; the failure if there is none left.
    pub(super) async fn wait(
        &self,
        patience: &mut Patience,
        why: String,
        after: Option<Duration>,
    ) -> Result<(), HubError> {
        let Some(pause) = patience.next(after) else { return Err(HubError::Unreachable { why }) };
        if after.is_some() && pause.as_secs() > 0 {
            (self.on_wait)(&why, pause);
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }

    fn strange(&self, what: &str) -> HubError {
        HubError::Strange(format!("{} {what}; is HF_ENDPOINT a hub?", self.host()))
    }

    /// A connection that failed.
    pub(super) fn broken(&self, error: &reqwest::Error) -> Trouble {
        let mut cause: &dyn std::error::Error = error;
        while let Some(deeper) = cause.source() {
            cause = deeper;
        }
        if error.is_builder() || error.is_redirect() {
            return HubError::Strange(format!("{}: {cause}", self.host())).into();
        }
        let what = if error.is_connect() { "cannot be reached" } else { "broke off" };
        Trouble::Passing { why: format!("{} {what}: {cause}", self.host()), after: None }
    }

    /// An answer that is none.
    pub(super) async fn refusal(&self, response: Response) -> Trouble {
        let (status, headers) = (response.status(), response.headers());
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let (after, code, message) = (retry_after(headers), text("x-error-code"), text("x-error-message"));
        let says = message.or(code).map_or_else(String::new, |message| format!(": {message}"));
        let says = format!("{} answered {status}{says}", self.host());
        let key = if self.token.is_some() {
            "does HF_TOKEN belong to somebody who may read it?"
        } else {
            "is it private? HF_TOKEN holds the key"
        };
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                HubError::Refused(format!("{says}. Is the name right, have you agreed to its terms, and {key}")).into()
            }
            StatusCode::NOT_FOUND => {
                HubError::Refused(format!("{says}. Are name and revision right, and {key}")).into()
            }
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => Trouble::Passing { why: says, after },
            _ if status.is_server_error() => Trouble::Passing { why: says, after },
            _ => self.strange(&format!("answered {status}")).into(),
        }
    }
}

/// How redirects are followed: `near` ones stay within the host.
fn policy(near: bool) -> Policy {
    Policy::custom(move |attempt| {
        let Some(last) = attempt.previous().last() else { return attempt.stop() };
        let origin = |url: &Url| (url.host_str().map(str::to_owned), url.port_or_known_default());
        if attempt.previous().len() > REDIRECTS {
            attempt.error("it redirects in circles")
        } else if last.scheme() == "https" && attempt.url().scheme() != "https" {
            attempt.error("it redirects from https to http, which is not followed")
        } else if near && origin(last) != origin(attempt.url()) {
            attempt.stop()
        } else {
            attempt.follow()
        }
    })
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Digest and size by the headers of a file, those of what a pointer stands for first. A redirect's own are of the redirect. The error says
/// what the headers do.
fn known(headers: &HeaderMap, redirects: bool) -> Result<Known, &'static str> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let of = |linked, own: &str| text(linked).or_else(|| if redirects { None } else { text(own) });
    let (etag, size) = (of("x-linked-etag", ETAG.as_str()), of("x-linked-size", CONTENT_LENGTH.as_str()));
    let (Some(etag), Some(Ok(size))) = (etag, size.map(str::parse::<u64>)) else {
        return Err(if redirects {
            "redirects elsewhere without naming both digest and size (X-Linked-Etag, X-Linked-Size)"
        } else {
            "does not name both digest and size (ETag, Content-Length)"
        });
    };
    let etag = etag.trim_start_matches("W/").trim_matches('"');
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if etag.is_empty() || etag.len() > 128 || etag.starts_with('.') || !etag.chars().all(plain) {
        return Err("sends an ETag that is no name");
    }
    // Nothing would be compared with anything.
    if size == 0 && Kind::of(etag) == Kind::Unknown {
        return Err("names no digest and a size of 0");
    }
    Ok(Known { etag: etag.to_owned(), size })
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderName;

    use super::*;

    #[test]
    fn addresses_keep_their_path_and_a_revision_is_one_part() {
        let wire = Wire::new("https://hub.example/mirror/", None).unwrap();
        let url = wire.url(&["api", "models", "a", "b", "revision", "refs/pr/1"]).unwrap();
        assert_eq!(url.as_str(), "https://hub.example/mirror/api/models/a/b/revision/refs%2Fpr%2F1");
        assert_eq!(wire.file("a/b", "c", "d.json").unwrap().path(), "/mirror/a/b/resolve/c/d.json");
    }

    #[test]
    fn a_token_travels_encrypted_or_not_at_all() {
        let with = |endpoint: &str| Wire::new(endpoint, Some("token".to_owned())).err().map(|error| error.to_string());
        assert_eq!((with("https://hub.example"), with("http://127.0.0.1:1")), (None, None));
        assert!(with("http://hub.example").unwrap().contains("unset HF_TOKEN"));
        assert!(Wire::new("file:///etc", None).is_err_and(|error| error.to_string().contains("begins with http")));
        assert!(Wire::new("hub", None).is_err_and(|error| error.to_string().contains("no URL")));
    }

    #[test]
    fn pauses_grow_to_a_limit_and_the_servers_are_longer() {
        let seconds = Duration::from_secs;
        let mut patience = Patience::default();
        let asked = [None, None, Some(seconds(90)), Some(seconds(3600)), Some(seconds(0)), None];
        let pauses = asked.map(|after| patience.next(after));
        assert_eq!(pauses[..2], [Some(PAUSE), Some(2 * PAUSE)]);
        assert_eq!(pauses[2..], [Some(seconds(90)), Some(OBEYED), Some(seconds(0)), None]);
        let mut long = Patience { left: 20, ..Patience::default() };
        assert_eq!((0..20).filter_map(|_| long.next(None)).max(), Some(LONGEST));
    }

    #[test]
    fn etags_that_are_no_file_names_are_refused() {
        let of = |etag: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(ETAG, etag.parse().unwrap());
            headers.insert(CONTENT_LENGTH, "7".parse().unwrap());
            known(&headers, false).ok().map(|known| (known.etag, known.size))
        };
        assert_eq!(of("W/\"ab\""), Some(("ab".to_owned(), 7)));
        for etag in ["\"../x\"", "\"\"", "\"a/b\"", "\".hidden\""] {
            assert_eq!(of(etag), None, "{etag}");
        }
    }

    #[test]
    fn what_a_redirect_says_of_itself_says_nothing_of_the_file() {
        let of = |pairs: &[(&'static str, &str)], redirects| {
            let headers: HeaderMap = pairs
                .iter()
                .map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap()))
                .collect();
            known(&headers, redirects).map(|known| (known.etag, known.size))
        };
        let own = [("etag", "ab"), ("content-length", "7")];
        let linked = [("x-linked-etag", "cd"), ("x-linked-size", "9")];
        assert_eq!(of(&own, false), Ok(("ab".to_owned(), 7)));
        assert_eq!(of(&[own, linked].concat(), true), Ok(("cd".to_owned(), 9)));
        for part in [&own[..], &[own[0], own[1], linked[0]], &[own[0], own[1], linked[1]]] {
            assert!(of(part, true).is_err_and(|why| why.contains("X-Linked-Size")), "{part:?}");
        }
        let empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391";
        assert_eq!(of(&[("etag", empty), ("content-length", "0")], false), Ok((empty.to_owned(), 0)));
        assert!(of(&[("etag", "ab"), ("content-length", "0")], false).is_err_and(|why| why.contains("size of 0")));
    }
}
