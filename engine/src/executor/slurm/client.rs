//! Slurm's commands. Each runs with a time limit, in a process group of its own (a Ctrl-C is the engine's to answer), and with
//! the environment that the caller stated.

use std::ffi::{OsStr, OsString};
use std::process::{Output, Stdio};
use std::time::Duration;

use tokio::process::Command;

use super::parse::{self, FORMAT, Row};
use super::state::{Exit, State};

/// A slurmctld that is down keeps a command for 9 s and more before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a command gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// It cannot be started.
    #[error("`{program}` cannot be started: {source}; Slurm's commands must be on the PATH")]
    Start {
        /// The command.
        program: &'static str,
        /// Why.
        source: std::io::Error,
    },
    /// It ran too long.
    #[error("`{0}` did not answer in time")]
    Slow(&'static str),
    /// It ended badly.
    #[error("{message}")]
    Refused {
        /// What it printed.
        message: String,
    },
}

impl CallError {
    /// Whether the same call would be refused again, because of what it asks for: then Slurm has not taken the job. Anything else
    /// leaves open what became of it.
    pub(super) fn is_final(&self) -> bool {
        match self {
            Self::Start { .. } => true,
            Self::Slow(_) => false,
            Self::Refused { message } => !TRANSIENT.iter().any(|text| message.contains(text)),
        }
    }
}

/// Parts of messages that speak of the moment, not of the job.
const TRANSIENT: [&str; 10] = [
    "Unable to contact",
    "Socket timed out",
    "Zero Bytes",
    "Connection refused",
    "Connection timed out",
    "ommunication",
    "Transport",
    "standby",
    "emporarily",
    "MaxSubmit",
];

/// Slurm's commands with their environment.
pub(super) struct Client {
    environment: Vec<(OsString, OsString)>,
}

impl Client {
    pub(super) fn new(environment: Vec<(OsString, OsString)>) -> Self {
        Self { environment }
    }

    /// Submits; the new job's number. `secrets` join the environment of this one command.
    pub(super) async fn submit(&self, words: &[OsString], secrets: &[(String, String)]) -> Result<u64, CallError> {
        let mut command = self.command("sbatch", words);
        command.envs(secrets.iter().map(|(name, value)| (name, value)));
        let text = answer("sbatch", command).await?;
        let unread =
            || CallError::Refused { message: format!("communication broke off: sbatch printed `{}`", text.trim()) };
        parse::submitted(&text).ok_or_else(unread)
    }

    /// The jobs of these names, ended ones included as long as Slurm remembers them.
    pub(super) async fn queue(&self, names: &[String]) -> Result<Vec<Row>, CallError> {
        let words = ["--noheader", "--states=all", "--format", FORMAT, "--name", &names.join(",")];
        answer("squeue", self.command("squeue", &words)).await.map(|text| parse::rows(&text))
    }

    /// How job `id` ended: from the controller while it remembers it, else from accounting; nothing where neither knows.
    pub(super) async fn ended(&self, id: u64) -> Option<(State, Exit)> {
        let id = id.to_string();
        let show = self.command("scontrol", &["--oneliner", "show", "job", &id]);
        if let Some(ended) = answer("scontrol", show).await.ok().and_then(|text| parse::shown(&text)) {
            return Some(ended);
        }
        let words = ["--noheader", "--parsable2", "--allocations", "--format=State,ExitCode", "--jobs", &id];
        // Clusters without accounting refuse.
        answer("sacct", self.command("sacct", &words)).await.ok().and_then(|text| parse::accounted(&text))
    }

    /// Sends SIGTERM to the script of the running jobs of this name, which is the worker.
    pub(super) async fn terminate(&self, name: &str) -> Result<(), CallError> {
        let words = ["--batch", "--signal=TERM", "--name", name];
        answer("scancel", self.command("scancel", &words)).await.map(drop)
    }

    /// Ends all jobs of this name, those that wait included.
    pub(super) async fn cancel(&self, name: &str) -> Result<(), CallError> {
        answer("scancel", self.command("scancel", &["--name", name])).await.map(drop)
    }

    fn command(&self, program: &str, words: &[impl AsRef<OsStr>]) -> Command {
        let mut command = Command::new(program);
        command.args(words).env_clear().envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        command
    }
}

/// Standard output of a command that ended well.
async fn answer(program: &'static str, mut command: Command) -> Result<String, CallError> {
    let output = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| CallError::Slow(program))?;
    let Output { status, stdout, stderr } = output.map_err(|source| CallError::Start { program, source })?;
    if status.success() {
        return Ok(String::from_utf8_lossy(&stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&stderr);
    let lines: Vec<&str> = said.lines().map(|line| line.trim_start_matches("sbatch: error: ")).collect();
    let message = if said.trim().is_empty() { format!("`{program}` ended with {status}") } else { lines.join("; ") };
    Err(CallError::Refused { message })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_job_are_told_from_those_of_the_moment() {
        let is_final = |message: &str| CallError::Refused { message: message.to_owned() }.is_final();
        for message in [
            "Batch job submission failed: Requested node configuration is not available",
            "Batch job submission failed: Invalid partition name specified",
            "Memory specification can not be satisfied; Batch job submission failed: Requested node configuration is not available",
            "sbatch: unrecognized option '--partitoin=gpu'",
        ] {
            assert!(is_final(message), "{message}");
        }
        for message in [
            "Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "Batch job submission failed: Socket timed out on send/recv operation",
            "QOSMaxSubmitJobPerUserLimit; Batch job submission failed: Job violates accounting/QOS policy",
            "Batch job submission failed: Slurm temporarily unable to accept job, sleeping and retrying",
        ] {
            assert!(!is_final(message), "{message}");
        }
    }

    #[tokio::test]
    async fn a_command_that_is_not_there_is_named() {
        let client = Client::new(vec![("PATH".into(), "/nowhere".into())]);
        let error = client.queue(&["a".to_owned()]).await.unwrap_err();
        assert!(error.to_string().contains("squeue") && error.is_final(), "{error}");
    }
}
