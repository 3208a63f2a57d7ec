//! Commands on a pipeline file: run, plan, audit, why, graph, simulate, doctor.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

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
