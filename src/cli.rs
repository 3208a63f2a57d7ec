//! The command line as typed.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands::ModelArgs;

/// A declarative pipeline engine for vision-language research.
#[derive(Debug, Parser)]
#[command(name = "mpcc", version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
#[command(after_help = "\
Examples:
  mpcc init                           write a commented starter pipeline
  mpcc run pipelines/full.yaml        run everything that is not up to date
  mpcc plan pipelines/full.yaml       what a run would do, and why
  mpcc why sft[split=full]            why a node would run, or did
  mpcc doctor                         what this machine has and lacks

Exit codes:
  0  done
  1  a stage failed
  2  the pipeline or the command line is wrong, or declared data or a key is missing (nothing has run)
  3  the machine: I/O, GPU, network
  4  waiting for a person's decision; the other branches are finished
  130  interrupted")]
pub(crate) struct Cli {
    /// The run-time store.
    #[arg(long, global = true, env = "MPCC_STORE", value_name = "DIR", default_value = ".mpcc")]
    pub(crate) store: PathBuf,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Bring a pipeline, or some of its nodes, up to date.
    #[command(after_help = "\
Examples:
  mpcc run pipelines/full.yaml                    everything
  mpcc run pipelines/full.yaml table4             one stage and what it needs
  mpcc run pipelines/full.yaml sft[split=full]+   a node, what it needs, and all that depends on it
  mpcc run pipelines/full.yaml --set seed=3 --keep-going
  mpcc run pipelines/full.yaml --json | jq -c .   one event a line
  mpcc run pipelines/full.yaml --remote s3://lab/mpcc   fetch what others have made instead of executing it
  mpcc run pipelines/full.yaml --executor slurm --slurm-option=--partition=gpu

Ctrl-C lets running stages end in good order; a second one kills them. What is finished stays in the store.")]
    Run(RunArgs),
    /// Say what a run would do: for each node hit, run or unknown, and the reason.
    #[command(after_help = "\
Examples:
  mpcc plan pipelines/full.yaml
  mpcc plan pipelines/full.yaml --profile paper   also lists missing data, keys and devices; exits 0
  mpcc plan pipelines/full.yaml --json            one line a node")]
    Plan(PlanArgs),
    /// Say why a node would run, or why it did: the first field of its recipe that changed, old -> new.
    #[command(after_help = "\
Examples:
  mpcc why filter                         the file, profile and parameters of the store's last run
  mpcc why sft[split=full] --file pipelines/full.yaml --set seed=3
  mpcc why score --json")]
    Why(WhyArgs),
    /// Print the graph of a pipeline.
    #[command(after_help = "\
Examples:
  mpcc graph pipelines/full.yaml | dot -Tsvg > full.svg
  mpcc graph pipelines/full.yaml --format mermaid
  mpcc graph pipelines/full.yaml --stages         stages instead of nodes
  mpcc graph pipelines/full.yaml --svg full.svg   a picture: what is up to date, what would run")]
    Graph(GraphArgs),
    /// Execute nodes several times and say where their outputs differ; nothing is kept.
    #[command(after_help = "\
Each execution reads the inputs from the store, begins with an empty memo and without checkpoints, and writes to a folder that
is gone afterwards. Outputs are compared with each other and with what the store has. Served models are asked again.
Exit code: 0 the same bytes each time, 1 they differ or an execution failed.

Examples:
  mpcc audit pipelines/full.yaml questions
  mpcc audit pipelines/full.yaml 'sft[split=full]' --times 3
  mpcc audit pipelines/full.yaml filter --json | jq .first")]
    Audit(AuditArgs),
    /// Show where each node of a run is.
    #[command(after_help = "\
Examples:
  mpcc status              the store's last run, also while it is going on
  mpcc status 20260101     a run by its id or the beginning of it
  mpcc status --json")]
    Status(StatusArgs),
    /// Print the log of a node.
    #[command(after_help = "\
Examples:
  mpcc logs sft[split=full]
  mpcc logs sft[split=full] --tail 20
  mpcc logs filter --run 20260101
  mpcc logs filter --path              only where it is")]
    Logs(LogsArgs),
    /// List runs, or show one.
    #[command(after_help = "\
Examples:
  mpcc runs list
  mpcc runs show                       the last run
  mpcc runs show --digests             node, port and artifact digest, one a line, to compare two stores")]
    Runs(RunsArgs),
    /// Simulate a pipeline on hosts that you may not have.
    #[command(after_help = "\
Examples:
  mpcc simulate pipelines/full.yaml --profile paper --hosts 1 --gpus-per-host 8
  mpcc simulate pipelines/full.yaml --durations 20260101 --svg timeline.svg
  mpcc simulate pipelines/full.yaml --json | tail -1

Durations are those of recorded runs; keying, hashing and queueing take no time. Nodes that share a GPU slow each other
down by --interference for each other one.")]
    Simulate(SimulateArgs),
    /// Print a run as a timeline in Chrome's trace format.
    #[command(after_help = "\
Examples:
  mpcc trace > trace.json              the last run; open it in ui.perfetto.dev or chrome://tracing
  mpcc trace 20260101")]
    Trace(TraceArgs),
    /// Print the path of an artifact of the last run.
    #[command(after_help = "\
Examples:
  mpcc show filter                     the first port
  mpcc show filter.verdicts
  cat $(mpcc show 'table4')/table.md")]
    Show(ShowArgs),
    /// Look after the store.
    #[command(after_help = "\
Examples:
  mpcc cache stats
  mpcc cache gc --dry-run              what would be freed
  mpcc cache verify                    hash everything; what is damaged is set aside and made again when needed
  mpcc cache push --remote s3://lab/mpcc      send what the last run used or made
  mpcc cache pull --remote s3://lab/mpcc      fetch everything that is there")]
    Cache(CacheArgs),
    /// Check, ask, measure, rewrite and serve vision-language models.
    #[command(after_help = "\
A model is a folder in Hugging Face layout, or `org/name` or `org/name@revision`, looked up in the Hugging Face cache.

Examples:
  mpcc model check models/base                  is everything there, and does it answer?
  mpcc model ask models/base --image cat.jpg \"What is on the sofa?\"
  mpcc model bench Qwen/Qwen2.5-VL-3B-Instruct --prompt 512 --image 640x480 --decode 64
  mpcc model serve models/base --port 8080      OpenAI's chat completions on the loopback")]
    Model(ModelArgs),
    /// Print the JSON Schema of pipeline files, for editors.
    #[command(after_help = "\
Examples:
  mpcc schema > schema.json
  echo '# yaml-language-server: $schema=schema.json' | cat - pipeline.yaml")]
    Schema,
    /// Report what this machine has, what is missing, and what to do about it.
    #[command(after_help = "\
Examples:
  mpcc doctor
  mpcc doctor pipelines/full.yaml --profile paper   also the data, keys and devices this pipeline asks for
  mpcc doctor --json")]
    Doctor(DoctorArgs),
    /// Write a commented starter pipeline.
    #[command(after_help = "\
Examples:
  mpcc init                  writes pipeline.yaml
  mpcc init experiments/first.yaml && mpcc run experiments/first.yaml")]
    Init(InitArgs),
    /// Print a completion script for a shell.
    #[command(after_help = "\
Examples:
  mpcc completions bash > /etc/bash_completion.d/mpcc
  mpcc completions fish > ~/.config/fish/completions/mpcc.fish")]
    Completions(CompletionsArgs),
    /// Print the manual page.
    #[command(after_help = "\
Examples:
  mpcc man | man -l -")]
    Man,
    /// Start the commands of a run (started by mpcc itself).
    #[command(hide = true)]
    Warden,
    /// Carry out one job (started by mpcc itself).
    #[command(hide = true)]
    Worker {
        /// The job file.
        job: PathBuf,
        /// Works in a folder of its own beside the file: others may have been given it, too.
        #[arg(long)]
        claim: bool,
    },
}

/// Which pipeline, with which values.
#[derive(Clone, Debug, Args)]
pub(crate) struct PipelineArgs {
    /// The pipeline file.
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) values: ValueArgs,
}

/// Which profile and parameters.
#[derive(Clone, Debug, Default, Args)]
pub(crate) struct ValueArgs {
    /// The profile; the first one in the file when left out.
    #[arg(long, value_name = "P")]
    pub(crate) profile: Option<String>,
    /// Sets a parameter of the pipeline. May be repeated.
    #[arg(long = "set", value_name = "K=V", value_parser = assignment)]
    pub(crate) sets: Vec<(String, String)>,
    /// Plans with a host of these GPUs instead of this one's, such as fake:2x80GiB.
    #[arg(long, value_name = "GPUS")]
    pub(crate) inventory: Option<String>,
    /// Who carries out stages that name no `executor`: process (this host) or slurm.
    #[arg(long, value_name = "NAME", value_parser = ["process", "slurm"])]
    pub(crate) executor: Option<String>,
    /// The numerics class of the hosts that run training and generation, such as cpu/f32/avx2 or cuda/bf16/sm80, when it is not
    /// this host's. Once for cpu and once for cuda.
    #[arg(long, value_name = "CLASS")]
    pub(crate) numerics: Vec<String>,
}

/// Reads `k=v`.
fn assignment(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as name=value")?;
    if name.is_empty() {
        Err("the name before `=` is empty".to_owned())
    } else {
        Ok((name.to_owned(), value.to_owned()))
    }
}

/// `mpcc run`.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Nodes or stages to bring up to date with what they need; `NODE+` adds all that depends on it. All when left out.
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// CPU cores to use; all when left out.
    #[arg(long, short = 'j', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) jobs: Option<u32>,
    /// Ignores the cache entry of a node or stage once. May be repeated.
    #[arg(long, value_name = "NODE")]
    pub(crate) force: Vec<String>,
    /// After a failure goes on with all that does not depend on it.
    #[arg(long, short = 'k')]
    pub(crate) keep_going: bool,
    /// Seconds a stage has to end in good order, when interrupted or out of time, before it is killed.
    #[arg(long, value_name = "S", default_value_t = 10)]
    pub(crate) grace: u64,
    /// Prints events, one JSON object a line, and nothing else on standard output.
    #[arg(long)]
    pub(crate) json: bool,
    /// The same as `mpcc plan`.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Fetches from this remote cache what the store has not, before executing it. See `mpcc cache push`.
    #[arg(long, env = "MPCC_REMOTE", value_name = "URL")]
    pub(crate) remote: Option<String>,
    #[command(flatten)]
    pub(crate) slurm: SlurmArgs,
}

/// How Slurm is used.
#[derive(Debug, Args)]
#[command(next_help_heading = "Slurm")]
pub(crate) struct SlurmArgs {
    /// One more option of sbatch, such as --slurm-option=--partition=gpu. May be repeated; MPCC_SLURM_OPTIONS holds those that
    /// come before, separated by blanks.
    #[arg(long = "slurm-option", value_name = "OPTION", allow_hyphen_values = true)]
    pub(crate) options: Vec<String>,
    /// A variable that jobs get from this environment, beside PATH. May be repeated.
    #[arg(long = "slurm-env", value_name = "NAME")]
    pub(crate) variables: Vec<String>,
    /// How many jobs may be in the queue at once.
    #[arg(long = "slurm-jobs", value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=3000))]
    pub(crate) limit: u32,
    /// Seconds between two looks at the queue while something happens.
    #[arg(long = "slurm-poll", value_name = "S", default_value_t = 2.0, value_parser = seconds)]
    pub(crate) poll: f64,
    /// Seconds that a shared file system may take to show what another host has written.
    #[arg(long = "slurm-settle", value_name = "S", default_value_t = 30.0, value_parser = seconds)]
    pub(crate) settle: f64,
}

/// Reads a time from a hundredth of a second to a day.
fn seconds(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "write a number of seconds".to_owned())?;
    if (0.01..=86_400.0).contains(&number) { Ok(number) } else { Err("from 0.01 to 86400 seconds".to_owned()) }
}

/// `mpcc simulate`.
#[derive(Debug, Args)]
pub(crate) struct SimulateArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Hosts.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = counts)]
    pub(crate) hosts: usize,
    /// GPUs of each host.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = counts)]
    pub(crate) gpus_per_host: usize,
    /// CPU cores of each host.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) cpus_per_host: u32,
    /// Memory of each GPU.
    #[arg(long, value_name = "SIZE", default_value = "80GiB", value_parser = mpcc_engine::resources::parse_size)]
    pub(crate) gpu_memory: u64,
    /// How much slower each other node on a GPU makes a node.
    #[arg(long, value_name = "F", default_value_t = mpcc_engine::allocator::INTERFERENCE)]
    pub(crate) interference: f64,
    /// The run whose durations count; the newest runs of the pipeline when left out.
    #[arg(long, value_name = "RUN")]
    pub(crate) durations: Option<String>,
    /// Writes a picture of the timeline.
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Prints one JSON object a line: the nodes, then the counts.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads a count that a simulation can bear.
fn counts(text: &str) -> Result<usize, String> {
    let number: usize = text.parse().map_err(|_| "write a number".to_owned())?;
    if number <= 10_000 { Ok(number) } else { Err("at most 10000".to_owned()) }
}

/// `mpcc trace`.
#[derive(Debug, Args)]
pub(crate) struct TraceArgs {
    /// The run's id or the beginning of it; the last run when left out.
    pub(crate) run: Option<String>,
}

/// `mpcc completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
}

/// `mpcc plan`.
#[derive(Debug, Args)]
pub(crate) struct PlanArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Nodes or stages, as for `mpcc run`. All when left out.
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// Ignores the cache entry of a node or stage. May be repeated.
    #[arg(long, value_name = "NODE")]
    pub(crate) force: Vec<String>,
    /// Prints one JSON object a line: a node each, then what is missing, then the counts.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc audit`.
#[derive(Debug, Args)]
pub(crate) struct AuditArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// Nodes or stages; exactly these, with what the store has of the nodes above them. All when left out.
    #[arg(value_name = "NODE")]
    pub(crate) nodes: Vec<String>,
    /// How often each is executed.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) times: u32,
    /// Prints one JSON object a node and one for all.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The node or stage.
    pub(crate) node: String,
    /// The pipeline file; that of the store's last run when left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) values: ValueArgs,
    /// Prints one JSON object a node.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc graph`.
#[derive(Debug, Args)]
pub(crate) struct GraphArgs {
    #[command(flatten)]
    pub(crate) pipeline: PipelineArgs,
    /// The language to print.
    #[arg(long, value_enum, default_value_t = GraphFormat::Dot)]
    pub(crate) format: GraphFormat,
    /// One box a stage instead of one a node.
    #[arg(long)]
    pub(crate) stages: bool,
    /// Draws a picture instead, coloured by what a run would do now; one box a stage.
    #[arg(long, value_name = "OUT.svg", conflicts_with_all = ["format", "stages"])]
    pub(crate) svg: Option<PathBuf>,
    /// One box a node in the picture.
    #[arg(long, requires = "svg")]
    pub(crate) nodes: bool,
}

/// A language for graphs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum GraphFormat {
    /// Graphviz.
    Dot,
    /// Mermaid, as Markdown pages show it.
    Mermaid,
}

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

/// `mpcc doctor`.
#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Also looks for what this pipeline asks for.
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) values: ValueArgs,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc init`.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The file to write.
    #[arg(default_value = "pipeline.yaml")]
    pub(crate) file: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound_and_every_command_has_examples() {
        let command = Cli::command();
        command.clone().debug_assert();
        let has_examples = |sub: &clap::Command, words: String| {
            let help = sub.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains(&words), "`{words}` has no examples");
        };
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            has_examples(sub, format!("mpcc {}", sub.get_name()));
        }
        let model = command.find_subcommand("model").unwrap();
        for sub in model.get_subcommands() {
            has_examples(sub, format!("mpcc model {}", sub.get_name()));
        }
    }

    #[test]
    fn a_run_is_typed_as_documented() {
        let typed = "mpcc run a.yaml x y+ --profile p --set k=v --set n=a=b --store d --jobs 2 --force x --keep-going --json \
             --slurm-option --partition=gpu --slurm-jobs 7";
        let cli = Cli::try_parse_from(typed.split_whitespace()).unwrap();
        let Command::Run(run) = cli.command else { panic!("it is a run") };
        assert_eq!(cli.store, PathBuf::from("d"));
        assert_eq!(run.nodes, ["x", "y+"]);
        assert_eq!(run.pipeline.values.sets, [("k".into(), "v".into()), ("n".into(), "a=b".into())]);
        assert_eq!((run.slurm.options.as_slice(), run.slurm.limit), (&["--partition=gpu".to_owned()][..], 7));
        assert!(run.keep_going && run.json && run.jobs == Some(2));
        for wrong in ["mpcc run", "mpcc run a.yaml --set k", "mpcc run a.yaml --jobs 0", "mpcc fly"] {
            assert!(Cli::try_parse_from(wrong.split(' ')).is_err(), "{wrong}");
        }
    }
}
