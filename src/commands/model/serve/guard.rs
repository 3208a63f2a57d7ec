//! Who may ask.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::Service;
use super::reply::Refusal;

/// Names under which the server may be reached, and the token.
pub(super) struct Guard {
    hosts: Vec<String>,
    token: String,
}

impl Guard {
    /// A server that listens at `address` is reached under it, under the loopback's names where it listens there, and under `more`.
    pub(super) fn new(address: IpAddr, more: &[String], token: String) -> Self {
        let written = |address: IpAddr| match address {
            IpAddr::V4(address) => address.to_string(),
            IpAddr::V6(address) => format!("[{address}]"),
        };
        let mut hosts = vec![written(address)];
        if address.is_loopback() || address.is_unspecified() {
            hosts.extend(["localhost", "127.0.0.1", "[::1]"].map(str::to_owned));
        }
        hosts.extend(more.iter().map(|name| name.to_ascii_lowercase()));
        Self { hosts, token }
    }

    /// Whether a Host header, with or without a port, names this server.
    fn knows(&self, host: &str) -> bool {
        let host = host.trim().to_ascii_lowercase();
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
            _ => &host,
        };
        self.hosts.iter().any(|known| known == name)
    }

    /// Whether an Authorization header carries the token; takes as long whatever differs.
    fn admits(&self, header: &[u8]) -> bool {
        let token = match header.split_at_checked(7) {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case(b"bearer ") => token.trim_ascii(),
            _ => return false,
        };
        let wrong = token.iter().zip(self.token.as_bytes()).fold(0, |wrong, (a, b)| wrong | (a ^ b));
        token.len() == self.token.len() && wrong == 0
    }

    fn refuse(&self, request: &Request) -> Option<Refusal> {
        let headers = request.headers();
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let target = request.uri().authority().map(axum::http::uri::Authority::as_str);
        if !self.knows(host) || target.is_some_and(|target| !self.knows(target)) {
            let names = self.hosts.join(", ");
            return Some(Refusal::host(format!(
                "this server is not `{host}`; reach it as {names}, or start it with --allow-host NAME"
            )));
        }
        if request.uri().path() == "/health" {
            return None;
        }
        let mut given = headers.get_all(AUTHORIZATION).iter();
        match (given.next(), given.next()) {
            (Some(header), None) if self.admits(header.as_bytes()) => None,
            (None, _) => {
                Some(Refusal::key("no token; send `Authorization: Bearer TOKEN` with what was printed at the start"))
            }
            _ => Some(Refusal::key(
                "the bearer token is wrong; the right one was printed at the start, or is in --token-env",
            )),
        }
    }
}

/// Refuses requests that name another host or carry no token.
pub(super) async fn check(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    match service.guard.refuse(&request) {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_host_are_known() {
        let guard = Guard::new("127.0.0.1".parse().unwrap(), &["Box.lan".into()], "t0ken".into());
        for host in ["127.0.0.1:8080", "localhost", "LOCALHOST:1", "[::1]:8080", "box.lan:80"] {
            assert!(guard.knows(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "",
            "127.0.0.1.evil.example",
            "localhost.evil:8080",
            "127.0.0.2",
            "localhost:a",
        ] {
            assert!(!guard.knows(host), "{host}");
        }
        assert!(guard.admits(b"Bearer t0ken") && guard.admits(b"bearer t0ken"));
        for header in
            [&b"Bearer t0keN"[..], b"Bearer t0ke", b"Bearer t0ken2", b"Bearer ", b"Basic t0ken", b"t0ken", b""]
        {
            assert!(!guard.admits(header));
        }
    }
}
