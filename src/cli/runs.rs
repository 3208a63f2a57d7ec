//! Commands on what runs left behind: status, logs, runs, show, trace.

use clap::{Args, Subcommand};

/// `mpcc status`.
#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The run's id or the beginning of it; the last run when left out.
    pub(crate) run: Option<String>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// The node.
    pub(crate) node: String,
    /// The run's id or the beginning of it; the newest run that has a log of the node when left out.
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// Only the last lines.
    #[arg(long, value_name = "LINES")]
    pub(crate) tail: Option<usize>,
    /// Prints where the log is instead.
    #[arg(long)]
    pub(crate) path: bool,
}

/// `mpcc runs`.
#[derive(Debug, Args)]
pub(crate) struct RunsArgs {
    /// What about them.
    #[command(subcommand)]
    pub(crate) command: RunsCommand,
}

/// What about runs.
#[derive(Debug, Subcommand)]
pub(crate) enum RunsCommand {
    /// List the runs of the store, newest first.
    List {
        /// Prints one JSON object a run.
        #[arg(long)]
        json: bool,
    },
    /// Show what one run cost, node by node: time, memory, requests, tokens, money.
    Show {
        /// The run's id or the beginning of it; `last`, or nothing, for the last run.
        run: Option<String>,
        /// Prints node, port and artifact digest of every node, executed or cached, and nothing else.
        #[arg(long)]
        digests: bool,
        /// Prints one JSON object.
        #[arg(long, conflicts_with = "digests")]
        json: bool,
    },
}

/// `mpcc show`.
#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// `NODE` for its first port, or `NODE.port`.
    #[arg(value_name = "NODE[.port]")]
    pub(crate) artifact: String,
    /// The run's id or the beginning of it; the last run when left out.
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
}

/// `mpcc trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The run's id or the beginning of it; the last run when left out.
    pub(crate) run: Option<String>,
}
