//! The command line of `mpcc model` as typed.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use mpcc_engine::resources::parse_size;

/// `mpcc model`.
#[derive(Debug, Args)]
pub(crate) struct ModelArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: ModelCommand,
}

/// What to do with a model.
#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// Say what a model lacks, let it answer once, and compare its numbers with a reference's.
    #[command(after_help = "\
Looks at the configuration, every tensor, the tokenizer and the picture processor, then lets the model answer once, greedily.
With --against a safetensors file of what another implementation computed (input_ids, pixel_values, logits, gen_ids, ...), prints
the largest absolute difference of every tensor. Allowed are 1e-5 for pixel_values, 1e-4 for logits and none for whole numbers.
Pillow and torchvision resize pictures to values that differ by some grey levels; the filter nearer to the reference is taken and named.
Without --image and --prompt the reference's own tokens and pixel values are used, and the model alone is compared.
Exit code: 0 all well, 1 something is missing or beyond what is allowed.

Examples:
  mpcc model check models/base
  mpcc model check models/base --json | jq .tensors
  mpcc model check models/base --against ref.safetensors --image a.png --prompt prompt.txt --min-new-tokens 16
  mpcc model check models/base --image a.png --dump ours.safetensors")]
    Check(CheckArgs),
    /// Ask a model about pictures.
    #[command(after_help = "\
The answer goes to standard output as it comes, counts and speed to standard error.

Examples:
  mpcc model ask models/base --image kitchen.jpg \"What is on the table?\"
  mpcc model ask models/base --image a.jpg --image b.jpg \"What changed?\" --temperature 0.7 --seed 3
  mpcc model ask models/base \"Hello\" --json | jq .text")]
    Ask(AskArgs),
    /// Measure how fast a model reads and answers here.
    #[command(after_help = "\
Prompts, pictures and batch mates all differ, so nothing is answered from what came before. The best of --repeat rounds counts.

Examples:
  mpcc model bench models/base
  mpcc model bench models/base --prompt 512 --image 640x480 --decode 64 --batch 4 --threads 8 --json
  mpcc model bench --random Qwen2.5-VL-3B --device cuda --dtype bf16 --image 640x480 --batch 16      without its weights")]
    Bench(BenchArgs),
    /// Bring a model from a hub into the Hugging Face cache.
    #[command(after_help = "\
Brings what a model needs (configuration, tokenizer, chat template, picture processor, safetensors) and nothing else, into the folder
where transformers looks too. What was cut goes on where it ended; each file is compared with the digest that the hub names. The commit
is printed: ORG/NAME@COMMIT is that model for good.

  HF_ENDPOINT      the hub; https://huggingface.co when not set
  HF_TOKEN         the key for private and gated models; sent to the hub's own host alone
  HF_HUB_CACHE     the cache; else HF_HOME/hub, else ~/.cache/huggingface/hub
  HF_HUB_OFFLINE   1 forbids it

Examples:
  mpcc model download Qwen/Qwen2.5-VL-3B-Instruct
  mpcc model download Qwen/Qwen2.5-VL-3B-Instruct@main --json | jq -r .dir
  mpcc model check Qwen/Qwen2.5-VL-3B-Instruct")]
    Download(DownloadArgs),
    /// Rewrite a model in this program's layout.
    #[command(after_help = "\
Writes config.json, tokenizer, picture processor, chat template and weights under the names that transformers has today, whatever
layout the checkpoint had. OUT must not exist or be empty; it appears when it is complete.

Examples:
  mpcc model convert models/old models/new
  mpcc model convert models/base models/small --dtype bf16 --shard 5GB")]
    Convert(ConvertArgs),
    /// Merge a low-rank adapter into its base.
    #[command(after_help = "\
The adapter is a folder in PEFT's layout. A key of it that fits no weight of the model is an error.

Examples:
  mpcc model merge-adapter models/base adapters/sft models/merged")]
    MergeAdapter(MergeArgs),
    /// Serve a model with OpenAI's chat completions.
    #[command(after_help = "\
Answers /v1/chat/completions, /v1/models and /health on the loopback. Clients send the bearer token that is printed at the start, or
the one that --token-env names. Ctrl-C ends answers under way and the server.

Examples:
  mpcc model serve models/base
  MPCC_TOKEN=secret mpcc model serve models/base --port 8080 --token-env MPCC_TOKEN
  mpcc model serve models/base --port 0 --json      the address as JSON; 0 takes any free port

In a pipeline:
  models: { base: { provider: openai, model: base, base_url: \"http://127.0.0.1:8080/v1\", api_key_env: MPCC_TOKEN } }")]
    Serve(ServeArgs),
}

/// Which model, and how it runs.
#[derive(Clone, Debug, Args)]
pub(crate) struct PlaceArgs {
    /// The model's folder, or `org/name[@revision]` in the Hugging Face cache.
    #[arg(value_name = "DIR")]
    pub(crate) model: String,
    /// Threads; all CPU cores when left out. Answers do not depend on it.
    #[arg(long, value_name = "T", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) threads: Option<u16>,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(crate) struct DeviceArgs {
    /// `cpu`, `cuda` or `cuda:N`. `auto` takes the first GPU, and the CPU where there is none, with a line that says why; left
    /// out, it is `auto` in a build with CUDA and `cpu` in others.
    #[arg(long, value_name = "DEVICE", value_parser = device)]
    pub(crate) device: Option<Device>,
    /// Type of the weights in memory; bf16 on a GPU when left out (`check`: f32), f32 on the CPU.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Computes on tensors on the CPU too, as on a GPU: slower, to look at what a GPU would do.
    #[arg(long)]
    pub(crate) tensors: bool,
}

/// A device as typed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A GPU if there is one.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU with this number.
    Cuda(usize),
}

/// Reads `cuda:1`.
fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => Ok(Device::Auto),
        "cpu" => Ok(Device::Cpu),
        "cuda" => Ok(Device::Cuda(0)),
        _ => {
            let number = text.strip_prefix("cuda:").and_then(|number| number.parse().ok());
            number.map(Device::Cuda).ok_or_else(|| "write auto, cpu, cuda or cuda:N, such as cuda:1".to_owned())
        }
    }
}

/// `mpcc model check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// What another implementation computed.
    #[arg(long, value_name = "REF.safetensors")]
    pub(crate) against: Option<PathBuf>,
    /// Writes what this program computed, under the same names.
    #[arg(long, value_name = "OUT.safetensors")]
    pub(crate) dump: Option<PathBuf>,
    /// A picture of the prompt. May be repeated.
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    /// The prompt as the chat template leaves it, one placeholder a picture; a question of our own when left out.
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt: Option<PathBuf>,
    /// Whose filter resizes pictures. `auto` takes the one nearer to the reference; for a --dump without a reference torchvision's, as
    /// transformers 5 does; else Pillow's, which all other commands and stages use.
    #[arg(long, value_enum, default_value_t = Resize::Auto)]
    pub(crate) resize: Resize,
    /// Exactly this many tokens are drawn, the end tokens excluded.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) min_new_tokens: Option<u32>,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Whose filter resizes pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Resize {
    /// As the other side of the comparison has it.
    Auto,
    /// Pillow's.
    Pillow,
    /// Torchvision's, which transformers 5 picks where torchvision is installed.
    Torchvision,
}

/// `mpcc model ask`.
#[derive(Debug, Args)]
pub(crate) struct AskArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The question.
    pub(crate) question: String,
    /// A picture, shown before the question. May be repeated.
    #[arg(long = "image", value_name = "FILE")]
    pub(crate) images: Vec<PathBuf>,
    /// The instructions before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Longest answer in tokens.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) max_new_tokens: u32,
    /// 0 takes the most likely token; above, tokens are drawn.
    #[arg(long, value_name = "F", default_value_t = 0.0)]
    pub(crate) temperature: f64,
    /// The draw; the same seed gives the same answer.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) seed: u64,
    /// Prints one JSON object when the answer is complete.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc model bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// Tokens of text in each prompt, at least; those of the picture come on top.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) prompt: u32,
    /// Size of the picture in each prompt; none when left out.
    #[arg(long, value_name = "WxH", value_parser = size)]
    pub(crate) image: Option<(u32, u32)>,
    /// Tokens drawn for each prompt.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(2..=1 << 20))]
    pub(crate) decode: u32,
    /// Prompts at once.
    #[arg(long, value_name = "B", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) batch: u32,
    /// Draws the weights: DIR needs none, only config.json, the tokenizer and the picture processor.
    #[arg(long)]
    pub(crate) random: bool,
    /// Rounds; the best counts.
    #[arg(long, value_name = "R", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) repeat: u32,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Reads `640x480`.
fn size(text: &str) -> Result<(u32, u32), String> {
    let side = |text: &str| text.parse().ok().filter(|side| (1..=1 << 14).contains(side));
    let sides = text.split_once('x').and_then(|(width, height)| Some((side(width)?, side(height)?)));
    sides.ok_or_else(|| "write width x height in pixels, each at most 16384, such as 640x480".to_owned())
}

/// A type of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Dtype {
    /// 32 bits.
    F32,
    /// 16 bits, the exponent of f32.
    Bf16,
}

/// How weights are written.
#[derive(Debug, Args)]
pub(crate) struct WriteArgs {
    /// Type of the weights; what most of them have when left out, f32 if that is neither.
    #[arg(long, value_enum)]
    pub(crate) dtype: Option<Dtype>,
    /// Most bytes of a weight file, such as 5GB.
    #[arg(long, value_name = "SIZE", default_value = "5GB", value_parser = parse_size)]
    pub(crate) shard: u64,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc model download`.
#[derive(Debug, Args)]
pub(crate) struct DownloadArgs {
    /// The model: `org/name`, or `org/name@revision` with a branch, a tag or a commit.
    #[arg(value_name = "ORG/NAME[@REVISION]")]
    pub(crate) model: String,
    /// Prints one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `mpcc model convert`.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// The folder to write.
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

/// `mpcc model merge-adapter`.
#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    /// The adapter's folder.
    pub(crate) adapter: PathBuf,
    /// The folder to write.
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) write: WriteArgs,
}

/// `mpcc model serve`.
#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) place: PlaceArgs,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
    /// The port; 0 takes any free one.
    #[arg(long, value_name = "PORT", default_value_t = 8080)]
    pub(crate) port: u16,
    /// The address to listen at.
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) host: IpAddr,
    /// One more name under which clients may reach the server (its Host header). May be repeated.
    #[arg(long = "allow-host", value_name = "NAME")]
    pub(crate) hosts: Vec<String>,
    /// The variable that holds the bearer token; one is made and printed when left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) token_env: Option<String>,
    /// The name that requests call the model by; the last part of DIR when left out.
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Longest answer in tokens where a request states none.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) max_new_tokens: u32,
    /// Requests that may wait; one more is told to come back.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) queue: u16,
    /// Prints address, token and model as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
