//! Commands on the store: cache.

use clap::{Args, Subcommand};

/// `mpcc cache`.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: CacheCommand,
}

/// What to do with the store.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Sizes and counts.
    Stats {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Free what no node's latest recipe needs. Fails while a run uses the store.
    Gc {
        /// Only says what would be freed.
        #[arg(long)]
        dry_run: bool,
        /// Keeps every complete entry and frees only what no entry needs.
        #[arg(long)]
        keep_entries: bool,
        /// Forgets the results of single requests and records too.
        #[arg(long)]
        memo: bool,
        /// Removes every checkpoint of unfinished training.
        #[arg(long)]
        partial: bool,
        /// Empties the quarantine.
        #[arg(long)]
        quarantine: bool,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Hash every object. What is damaged is set aside; exits 3 when there is any.
    Verify {
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Send entries and all they need to a remote cache. What is there already is not sent again.
    #[command(after_help = "\
Examples:
  mpcc cache push --remote s3://lab/mpcc              the entries of the last run
  mpcc cache push sft filter --remote s3://lab/mpcc   of these nodes or stages of the last run
  mpcc cache push --all --remote file:///srv/mpcc     every complete entry of the store

Credentials come from the environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL;
GOOGLE_APPLICATION_CREDENTIALS; AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ACCOUNT_KEY.")]
    Push {
        /// Nodes or stages of the last run. All of them when left out.
        #[arg(value_name = "NODE", conflicts_with = "all")]
        nodes: Vec<String>,
        /// Every complete entry of the store.
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Fetch entries and all they need from a remote cache, each object checked by its hash.
    #[command(after_help = "\
Examples:
  mpcc cache pull --remote s3://lab/mpcc              everything that the store cannot answer yet
  mpcc cache pull sft --remote s3://lab/mpcc          a node or stage of the last run, or a recipe's digest")]
    Pull {
        /// Nodes or stages of the last run, or digests of recipes. Everything when left out.
        #[arg(value_name = "NODE")]
        nodes: Vec<String>,
        #[command(flatten)]
        remote: RemoteArgs,
    },
}

/// Which remote cache, and how to speak with it.
#[derive(Clone, Debug, Args)]
pub(crate) struct RemoteArgs {
    /// s3://BUCKET/PREFIX, gs://BUCKET/PREFIX, az://CONTAINER/PREFIX, file:///FOLDER or the path of a folder.
    #[arg(long = "remote", env = "MPCC_REMOTE", value_name = "URL")]
    pub(crate) url: Option<String>,
    /// Requests under way at once.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) transfers: u16,
    /// Seconds a request that fails for a passing reason is tried again.
    #[arg(long, value_name = "S", default_value_t = 20)]
    pub(crate) patience: u64,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
