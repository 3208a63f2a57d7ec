//! A command stage without records: start the command, wait, tell how it ended.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command as Child, ExitStatus, Stdio};
use std::sync::atomic::Ordering;

use rustix::process::{Signal, getpid};

use super::Ports;
use crate::command::substitute;
use crate::executor::OutOfMemoryWatch;
use crate::executor::tree::signal_descendants;
use crate::job::Outcome;
use crate::plan::Command;
use crate::stage::Context;

/// Runs `command` to its end. Its output goes where this process's output goes.
pub(super) fn run(command: &Command, ctx: &Context) -> Result<(), Outcome> {
    let words = words(command, &Ports::of(ctx))?;
    let memory = OutOfMemoryWatch::start();
    let mut child =
        child(command, &words).stdin(Stdio::null()).spawn().map_err(|error| cannot_start(&words, &error))?;
    if ctx.cancel.load(Ordering::Relaxed) {
        // The signal came before there was anything to pass it on to.
        signal_descendants(getpid(), Signal::TERM);
    }
    let status = child.wait().map_err(|error| Outcome::machine(format!("`{}` was lost: {error}", words[0])))?;
    ended(command, &words, status, memory)
}

/// The command's words with paths filled in.
pub(crate) fn words(command: &Command, ports: &Ports<'_>) -> Result<Vec<String>, Outcome> {
    let words = substitute::words(command, ports).map_err(|error| Outcome::invalid(error.to_string()))?;
    if words.first().is_none_or(String::is_empty) {
        Err(Outcome::invalid("the command is empty".to_owned()))
    } else {
        Ok(words)
    }
}

/// The process to start, with the command's folder and declared environment.
pub(super) fn child(command: &Command, words: &[String]) -> Child {
    let mut child = Child::new(&words[0]);
    child.args(&words[1..]).envs(&command.env).current_dir(&command.cwd);
    child
}

/// Why a command could not be started.
pub(crate) fn cannot_start(words: &[String], error: &io::Error) -> Outcome {
    let reason = match error.kind() {
        io::ErrorKind::NotFound => "no such program on the PATH, or no such folder".to_owned(),
        _ => error.to_string(),
    };
    Outcome::invalid(format!("cannot start `{}`: {reason}", words[0]))
}

/// How a command that ended with `status` has fared.
pub(crate) fn ended(
    command: &Command,
    words: &[String],
    status: ExitStatus,
    memory: OutOfMemoryWatch,
) -> Result<(), Outcome> {
    let name = if command.shell { command.argv.join(" ") } else { words[0].clone() };
    match (status.code(), status.signal()) {
        (Some(0), _) => Ok(()),
        // A shell, and many another program that starts others, reports the death of its last command this way.
        (Some(137), _) if memory.fired() => Err(Outcome::Killed { signal: Signal::KILL.as_raw(), out_of_memory: true }),
        (Some(code), _) => Err(Outcome::failed(format!("`{}` ended with exit code {code}", shortened(&name)))),
        (None, signal) => {
            let signal = signal.unwrap_or_default();
            Err(Outcome::Killed { signal, out_of_memory: signal == Signal::KILL.as_raw() && memory.fired() })
        }
    }
}

/// The first line of a command, cut to fit a message.
fn shortened(text: &str) -> String {
    let line = text.trim().lines().next().unwrap_or_default();
    let cut: String = line.chars().take(60).collect::<String>().trim_end().to_owned();
    if cut.len() < text.trim().len() { format!("{cut} ...") } else { cut }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_commands_are_cut() {
        assert_eq!(shortened("wc -l"), "wc -l");
        assert_eq!(shortened("\n wc -l\nls\n"), "wc -l ...");
        assert_eq!(shortened(&"x".repeat(100)), format!("{} ...", "x".repeat(60)));
    }
}
