//! The command line as typed: the commands here, what each takes in the files below.

mod pipeline;
mod runs;
mod store;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::ModelArgs;

pub(crate) use pipeline::{
    AuditArgs, DoctorArgs, GraphArgs, GraphFormat, PipelineArgs, PlanArgs, RunArgs, SimulateArgs, SlurmArgs, ValueArgs,
    WhyArgs,
};
pub(crate) use runs::{LogsArgs, RunsArgs, RunsCommand, ShowArgs, StatusArgs, TraceArgs};
pub(crate) use store::{CacheArgs, CacheCommand, RemoteArgs};

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

/// `mpcc completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell.
    pub(crate) shell: clap_complete::Shell,
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
