//! What people and programs see. Events come in, lines go out.
//!
//! | standard output is | a run shows |
//! |---|---|
//! | a terminal | bars with an estimate of the time left, a line for each node that ends ([`bars`]) |
//! | a pipe or a file | plain lines ([`plain`]) |
//! | anything, with `--json` | the events and nothing else ([`json`]) |

pub(crate) mod bars;
pub(crate) mod columns;
pub(crate) mod costs;
pub(crate) mod dag;
pub(crate) mod json;
mod layers;
pub(crate) mod lines;
pub(crate) mod plain;
pub(crate) mod reasons;
pub(crate) mod spent;
pub(crate) mod summary;
pub(crate) mod tables;
pub(crate) mod timeline;

use std::io::{IsTerminal, Write};

use mpcc_engine::event::Event;

/// Shows the events of a run as they come.
pub(crate) trait Reporter: Send {
    /// Shows one event.
    fn event(&mut self, event: &Event);
}

/// The reporter that fits standard output.
pub(crate) fn reporter(json: bool) -> Box<dyn Reporter> {
    if json {
        Box::new(json::Json)
    } else if std::io::stdout().is_terminal() && std::io::stderr().is_terminal() {
        Box::new(bars::Bars::new())
    } else {
        Box::new(plain::Plain::default())
    }
}

/// Prints a line on standard output. A reader that has gone away is no error: whoever runs `| head` has seen enough.
pub(crate) fn say(line: impl std::fmt::Display) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a part of a line on standard output at once.
pub(crate) fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Prints a line on standard error.
pub(crate) fn complain(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

/// `3.2 s`, `4 m 05 s`, `2 h 03 m`.
pub(crate) fn seconds(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        _ if seconds < 0.05 => "0 s".to_owned(),
        0..10 => format!("{seconds:.1} s"),
        10..60 => format!("{whole} s"),
        60..3600 => format!("{} m {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} m", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::seconds;

    #[test]
    fn durations_are_short() {
        for (value, text) in [
            (0.004, "0 s"),
            (3.21, "3.2 s"),
            (9.97, "10 s"),
            (59.6, "1 m 00 s"),
            (245.0, "4 m 05 s"),
            (7380.0, "2 h 03 m"),
        ] {
            assert_eq!(seconds(value), text);
        }
    }
}
