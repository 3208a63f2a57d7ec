//! The process executor with real children. This binary is its own worker, so it brings its own `main`: called as
//! `worker JOB.json` it carries out a job, called otherwise it runs the tests below.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mpcc_cache::{Artifact, ArtifactKind, Digest};
use mpcc_engine::asking::Secrets;
use mpcc_engine::executor::{Attempt, Executor, ProcessExecutor, ProcessOptions};
use mpcc_engine::gpu::{GpuMeter, GpuUse};
use mpcc_engine::job::{AttemptId, Blame, Job, JobOutput, Outcome, Usage};
use mpcc_engine::plan::{Action, Command};
use mpcc_engine::port::{PortType, Signature};
use mpcc_engine::registry::Registry;
use mpcc_engine::resources::{Memory, Resources};
use mpcc_engine::stage::{Bound, Context, Input, Note, Stage, StageError};
use mpcc_engine::worker::worker_main;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A kind that does what its parameter says.
#[derive(Serialize, Deserialize, JsonSchema)]
struct Act {
    act: String,
}

impl Stage for Act {
    const KIND: &'static str = "test.act";
    const VERSION: u32 = 1;
    const ABOUT: &'static str = "does what it is told";

    fn signature() -> Signature {
        Signature::new().gives("y", PortType::File)
    }

    fn run(&self, ctx: &Context) -> Result<(), StageError> {
        match self.act.as_str() {
            "write" => {
                println!("{}", json!({"end": {"outcome": {"outcome": "cancelled"}, "usage": null}}));
                println!("printed by the stage");
                ctx.progress(1, 1, "files");
                let text = format!("{} {} {:?}", ctx.node, ctx.threads, ctx.devices);
                std::fs::write(ctx.output("y")?, text).map_err(|error| StageError::io(ctx.output("y").unwrap(), error))
            }
            "nothing" => Ok(()),
            "panic" => panic!("this stage panics"),
            "abort" => std::process::abort(),
            "exit" => std::process::exit(7),
            "invalid" => Err(StageError::invalid("bad parameter")),
            "disk" => Err(StageError::Machine("the disk is full".into())),
            "starve" => Err(StageError::OutOfMemory { memory: Memory::Main, message: "too large a batch".into() }),
            "wait" => Err(StageError::Waiting("decide first".into())),
            "die" => {
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
                Ok(())
            }
            "poll" => loop {
                ctx.check_cancelled()?;
                std::thread::sleep(Duration::from_millis(2));
            },
            "stubborn" => loop {
                std::thread::sleep(Duration::from_secs(1));
            },
            "leave" => {
                std::process::Command::new("sh")
                    .args(["-c", "setsid sleep 300 & setsid sleep 300 &"])
                    .status()
                    .unwrap();
                std::fs::write(ctx.output("y")?, "").map_err(|error| StageError::Machine(error.to_string()))
            }
            other => Err(StageError::invalid(format!("cannot {other}"))),
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|first| first == "worker") {
        #[allow(clippy::disallowed_methods, reason = "this test binary stands in for the program, which may read it")]
        let secrets: Secrets = std::sync::Arc::new(|name: &str| std::env::var(name).ok());
        std::process::exit(worker_main(Path::new(&arguments[2]), &Registry::new().with::<Act>(), &secrets));
    }
    if arguments.get(1).is_some_and(|first| first == "warden") {
        std::process::exit(mpcc_engine::executor::warden::warden_main());
    }
    if arguments.get(1).is_some_and(|first| first == "engine") {
        return stand_in_engine(Path::new(&arguments[2]));
    }
    let wanted = arguments.iter().skip(1).find(|argument| !argument.starts_with('-')).cloned().unwrap_or_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    for (name, test) in TESTS.iter().filter(|(name, _)| name.contains(&wanted)) {
        let started = Instant::now();
        runtime.block_on(async { test() });
        println!("{name} ... ok ({:.2} s)", started.elapsed().as_secs_f64());
    }
}

const TESTS: &[(&str, fn())] = &[
    ("a_builtin_kind_runs", a_builtin_kind_runs),
    ("every_end_is_told_apart", every_end_is_told_apart),
    ("commands_run", commands_run),
    ("a_command_gets_its_grant_and_nothing_else", a_command_gets_its_grant_and_nothing_else),
    ("a_stage_sees_its_devices_alone", a_stage_sees_its_devices_alone),
    ("what_a_stage_used_is_told", what_a_stage_used_is_told),
    ("a_full_gpu_is_recognised", a_full_gpu_is_recognised),
    ("secrets_stay_out_of_the_log", secrets_stay_out_of_the_log),
    ("draining_ends_in_good_order", draining_ends_in_good_order),
    ("time_limits_reach_grandchildren", time_limits_reach_grandchildren),
    ("killing_reaches_grandchildren", killing_reaches_grandchildren),
    ("a_dead_engine_takes_everything_along", a_dead_engine_takes_everything_along),
    ("nothing_outlives_its_stage", nothing_outlives_its_stage),
    ("a_stray_dies_with_its_stage_and_leaves_others_alone", a_stray_dies_with_its_stage_and_leaves_others_alone),
    ("a_lost_warden_takes_its_commands_along", a_lost_warden_takes_its_commands_along),
    ("a_real_time_signal_holds_nobody_up", a_real_time_signal_holds_nobody_up),
    ("records_are_answered_once", records_are_answered_once),
    ("failed_records_are_kept_apart", failed_records_are_kept_apart),
    ("a_broken_record_command_is_given_up", a_broken_record_command_is_given_up),
    ("draining_a_record_stage_keeps_its_answers", draining_a_record_stage_keeps_its_answers),
];

/// A folder with a store, and an executor.
struct Bench {
    folder: tempfile::TempDir,
    options: ProcessOptions,
}

impl Bench {
    fn new() -> Self {
        let path = ("PATH".into(), "/usr/local/bin:/usr/bin:/bin".into());
        let options = ProcessOptions {
            program: std::env::current_exe().unwrap(),
            arguments: vec!["worker".into()],
            warden: vec!["warden".into()],
            environment: vec![path],
            secrets: BTreeMap::from([("API_KEY".to_owned(), "sk-very-secret".to_owned())]),
            grace: Duration::from_millis(300),
        };
        Self { folder: tempfile::tempdir().unwrap(), options }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn job(&self, action: Action) -> Job {
        let folder = self.path().join("attempt");
        let path = Job::output_in(&folder, "y");
        Job {
            attempt: AttemptId(1),
            node: "node".into(),
            matrix: Vec::new(),
            action,
            seed: 17,
            threads: 2,
            devices: vec![3, 5],
            inputs: BTreeMap::new(),
            outputs: BTreeMap::from([("y".to_owned(), JobOutput { path, tree: false })]),
            partial: self.path().join("partial"),
            store: self.path().join("store"),
            log: self.path().join("logs/node.log"),
            timeout_s: 0,
            secrets: Vec::new(),
            executor: "process".into(),
            resources: Resources::default(),
            numerics: None,
            fresh: false,
            folder,
        }
    }

    fn act(&self, act: &str) -> Job {
        let params = json!({ "act": act });
        let kind = "test.act".to_owned();
        self.job(Action::Builtin { kind, version: 1, params, numerics: false, seeded: false })
    }

    fn command(&self, shell: bool, argv: &[&str]) -> Command {
        Command {
            kind: None,
            argv: argv.iter().map(|&word| word.to_owned()).collect(),
            shell,
            params: json!({}),
            each: None,
            env: BTreeMap::new(),
            code: Vec::new(),
            cwd: self.path().to_owned(),
        }
    }

    fn script(&self, script: &str) -> Job {
        self.job(Action::Command(self.command(true, &[script])))
    }

    /// A record stage that runs `script` over `records`.
    fn each(&self, script: &str, records: &[&str]) -> Job {
        let path = self.path().join("records.jsonl");
        std::fs::write(&path, records.join("\n")).unwrap();
        let artifact = Artifact { kind: ArtifactKind::File, digest: Digest::of(b"records"), bytes: 0 };
        let input = Bound::Artifact(Input { node: "records".into(), matrix: Vec::new(), artifact, path });
        let command = Command { each: Some("x".to_owned()), ..self.command(true, &[script]) };
        let inputs = BTreeMap::from([("x".to_owned(), vec![input])]);
        Job { inputs, ..self.job(Action::Command(command)) }
    }

    fn start(&self, job: Job) -> (Attempt, UnboundedReceiver<(AttemptId, Note)>) {
        let (notes, heard) = unbounded_channel();
        (ProcessExecutor::new(self.options.clone()).start(job, notes), heard)
    }

    fn run(&self, job: Job) -> (Outcome, Usage, Vec<Note>) {
        let (attempt, mut heard) = self.start(job);
        let (outcome, usage) = wait(attempt);
        let mut notes = Vec::new();
        while let Ok((_, note)) = heard.try_recv() {
            notes.push(note);
        }
        (outcome, usage, notes)
    }

    fn output(&self) -> String {
        std::fs::read_to_string(Job::output_in(&self.path().join("attempt"), "y")).unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.path().join("logs/node.log")).unwrap()
    }
}

/// Waits inside the runtime that `main` entered.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(future))
}

fn failed(outcome: &Outcome) -> (String, Blame) {
    let Outcome::Failed { message, blame } = outcome else { panic!("expected a failure, got {outcome:?}") };
    (message.clone(), *blame)
}

/// Waits until `path` holds `lines` lines.
fn wait_for_lines(path: &Path, lines: usize) -> Vec<String> {
    let started = Instant::now();
    loop {
        let found: Vec<String> = std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect();
        if found.len() >= lines {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "{} never got {lines} lines", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until the processes whose numbers `path` lists are gone.
fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

fn assert_gone(path: &Path, count: usize) {
    for pid in wait_for_lines(path, count) {
        let started = Instant::now();
        while is_alive(&pid) {
            assert!(started.elapsed() < Duration::from_secs(5), "process {pid} lives on");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

fn a_builtin_kind_runs() {
    let bench = Bench::new();
    let (outcome, usage, notes) = bench.run(bench.act("write"));
    assert_eq!(outcome, Outcome::Done, "{}", bench.log());
    assert_eq!(bench.output(), "node 2 [0, 1]");
    assert_eq!(notes, [Note::Progress { done: 1, total: 1, unit: "files".into() }], "a stage cannot forge notes");
    assert!(bench.log().contains("printed by the stage"));
    assert!(usage.wall_s > 0.0 && usage.cpu_s > 0.0 && usage.peak_rss_bytes > 1 << 20, "{usage:?}");
}

fn every_end_is_told_apart() {
    let bench = Bench::new();
    let run = |act| bench.run(bench.act(act)).0;
    assert!(failed(&run("nothing")).0.contains("without its output `y`"));
    assert!(failed(&run("panic")).0.contains("this stage panics"));
    assert_eq!(failed(&run("invalid")), ("bad parameter".to_owned(), Blame::Inputs));
    assert_eq!(failed(&run("disk")), ("the disk is full".to_owned(), Blame::Machine));
    assert_eq!(failed(&run("jump")), ("cannot jump".to_owned(), Blame::Inputs));
    assert_eq!(run("wait"), Outcome::Waiting { message: "decide first".into() });
    assert!(failed(&run("exit")).0.contains("exit code 7"));
    assert_eq!(run("abort"), Outcome::Killed { signal: 6, out_of_memory: false });
    assert_eq!(run("die"), Outcome::Killed { signal: 9, out_of_memory: false });
    let mut other = bench.act("write");
    let Action::Builtin { version, .. } = &mut other.action else { unreachable!("`act` makes a built-in") };
    *version = 2;
    assert_eq!(failed(&bench.run(other).0).1, Blame::Inputs);
    let nowhere = ProcessOptions { program: "/nowhere/mpcc".into(), ..bench.options.clone() };
    let (attempt, _heard) = Bench { folder: tempfile::tempdir().unwrap(), options: nowhere }.start(bench.act("write"));
    let (message, blame) = failed(&wait(attempt).0);
    assert!(message.contains("/nowhere/mpcc") && blame == Blame::Machine, "{message}");
}

fn commands_run() {
    let bench = Bench::new();
    assert_eq!(bench.run(bench.script("echo hello > ${outputs.y}; echo logged; pwd >&2")).0, Outcome::Done);
    assert_eq!(bench.output(), "hello\n");
    assert_eq!(bench.log(), format!("logged\n{}\n", bench.path().display()));
    let argv = bench.job(Action::Command(bench.command(false, &["cp", "/dev/null", "${outputs.y}"])));
    assert_eq!(bench.run(argv).0, Outcome::Done);
    assert_eq!(
        failed(&bench.run(bench.script("exit 3")).0),
        ("`exit 3` ended with exit code 3".to_owned(), Blame::Stage)
    );
    let missing = bench.job(Action::Command(bench.command(false, &["no-such-program"])));
    let (message, blame) = failed(&bench.run(missing).0);
    assert!(blame == Blame::Inputs && message.contains("no-such-program"), "{message}");
    let segfault = bench.job(Action::Command(bench.command(false, &["sh", "-c", "kill -SEGV $$"])));
    assert_eq!(bench.run(segfault).0, Outcome::Killed { signal: 11, out_of_memory: false });
    assert_eq!(bench.run(bench.script("cat; echo end > ${outputs.y}")).0, Outcome::Done, "standard input is empty");
}

fn a_command_gets_its_grant_and_nothing_else() {
    let bench = Bench::new();
    let mut command = bench.command(true, &["env > ${outputs.y}"]);
    command.env.insert("DECLARED".into(), "here".into());
    assert_eq!(bench.run(bench.job(Action::Command(command))).0, Outcome::Done);
    let output = bench.output();
    let names: Vec<&str> = output.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    for line in ["CUDA_VISIBLE_DEVICES=3,5", "OMP_NUM_THREADS=2", "RAYON_NUM_THREADS=2", "DECLARED=here"] {
        assert!(output.lines().any(|found| found == line), "{line} in {output}");
    }
    assert!(!names.contains(&"API_KEY") && !names.contains(&"HOME"), "{names:?}");
}

/// The same command under the warden and under a worker of its own.
fn both_ways(bench: &Bench, script: &str) -> [Job; 2] {
    let plain = bench.script(script);
    let secret = Job { secrets: vec!["API_KEY".into()], ..plain.clone() };
    [plain, secret]
}

fn a_stage_sees_its_devices_alone() {
    let mut bench = Bench::new();
    let sees = |bench: &Bench, devices: &[usize]| {
        both_ways(bench, "echo \"[${CUDA_VISIBLE_DEVICES-unset}]\" > ${outputs.y}").map(|job| {
            assert_eq!(bench.run(Job { devices: devices.to_vec(), ..job }).0, Outcome::Done);
            bench.output().trim().to_owned()
        })
    };
    assert_eq!(sees(&bench, &[3, 5]), ["[3,5]", "[3,5]"], "a gang sees all of its devices");
    assert_eq!(sees(&bench, &[]), ["[]", "[]"], "set and empty: CUDA shows nothing");
    bench.options.environment.push(("CUDA_VISIBLE_DEVICES".into(), "7, GPU-8c1f,2".into()));
    assert_eq!(sees(&bench, &[1, 2]), ["[GPU-8c1f,2]", "[GPU-8c1f,2]"], "this process numbers its own devices from 0");
    assert_eq!(sees(&bench, &[]), ["[]", "[]"]);
}

/// Says that device 5 is used by whoever runs `sleep`.
struct Sleepers;

impl GpuMeter for Sleepers {
    fn look(&self) -> GpuUse {
        let sleeps =
            |pid: &i32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "sleep\n");
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(sleeps);
        GpuUse { processes: pids.map(|pid| (5, pid, 1 << 30)).collect(), devices: BTreeMap::new() }
    }
}

fn what_a_stage_used_is_told() {
    let bench = Bench::new();
    // Two pipes that each hold 40 MB for a while, and an orphan that works until it is killed.
    let script = "for i in 1 2; do (head -c 40000000 /dev/zero | tail -c 40000000 | (sleep 1.6; cat > /dev/null)) & done; \
                  (setsid sh -c 'while :; do :; done' &); wait; echo > ${outputs.y}";
    let started: Vec<_> = both_ways(&bench, script)
        .into_iter()
        .enumerate()
        .map(|(at, job)| {
            let log = bench.path().join(format!("{at}.log"));
            let folder = bench.path().join(format!("attempt{at}"));
            let path = Job::output_in(&folder, "y");
            let outputs = BTreeMap::from([("y".to_owned(), JobOutput { path, tree: false })]);
            let executor = ProcessExecutor::new(bench.options.clone()).with_gpu_meter(Arc::new(Sleepers));
            let (notes, _) = unbounded_channel();
            let attempt = executor.start(Job { folder, outputs, log, ..job }, notes);
            (executor, attempt)
        })
        .collect();
    for (_executor, attempt) in started {
        let (outcome, usage) = wait(attempt);
        assert_eq!(outcome, Outcome::Done);
        assert!(usage.peak_rss_bytes > 75_000_000, "both halves count: {usage:?}");
        assert!(usage.cpu_s > 0.4 && usage.wall_s > 1.5, "{usage:?}");
        assert_eq!(usage.gpu_peak_bytes, 2 << 30, "its own two sleepers and nobody else's");
    }
}

fn a_full_gpu_is_recognised() {
    let bench = Bench::new();
    let torch = "echo 'torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB' >&2; exit 1";
    for job in both_ways(&bench, torch) {
        let outcome = bench.run(job).0;
        assert_eq!(outcome.out_of_memory(), Some(Memory::Gpu), "{outcome:?}");
        assert!(outcome.describe().starts_with("ran out of GPU memory: `echo"), "{outcome:?}");
    }
    for job in both_ways(&bench, "exit 1") {
        assert_eq!(bench.run(job).0.out_of_memory(), None, "what an earlier attempt has logged tells nothing");
    }
    for job in both_ways(&bench, "echo CUDA out of memory, tried again; echo > ${outputs.y}") {
        assert_eq!(bench.run(job).0, Outcome::Done);
    }
    let candle = bench.run(bench.act("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")")).0;
    assert_eq!(candle.out_of_memory(), Some(Memory::Gpu), "{candle:?}");
    let stated = bench.run(bench.act("starve")).0;
    assert_eq!(stated, Outcome::OutOfMemory { memory: Memory::Main, message: "too large a batch".into() });
}

fn secrets_stay_out_of_the_log() {
    let bench = Bench::new();
    let script = "echo key $API_KEY; echo $API_KEY >&2; test -n \"$API_KEY\" && echo yes > ${outputs.y}; exit 3";
    let job = Job { secrets: vec!["API_KEY".into()], ..bench.script(script) };
    let file = job.file();
    assert_eq!(
        failed(&bench.run(job).0).0,
        "`echo key $API_KEY; echo $API_KEY >&2; test -n \"$API_KEY\" && ...` ended with exit code 3"
    );
    assert_eq!(bench.output(), "yes\n");
    assert_eq!(bench.log(), "key ***\n***\n");
    assert!(!std::fs::read_to_string(file).unwrap().contains("sk-very-secret"));
}

fn draining_ends_in_good_order() {
    let bench = Bench::new();
    let (attempt, _heard) = bench.start(bench.act("poll"));
    std::thread::sleep(Duration::from_millis(100));
    attempt.drain();
    assert_eq!(wait(attempt).0, Outcome::Cancelled);

    let started = bench.path().join("started");
    let script = format!("trap 'echo trapped; exit 1' TERM; echo > {}; sleep 300 & wait", started.display());
    let (attempt, _heard) = bench.start(bench.script(&script));
    wait_for_lines(&started, 1);
    attempt.drain();
    assert_eq!(wait(attempt).0, Outcome::Cancelled);
    assert!(bench.log().contains("trapped"));

    let (attempt, _heard) = bench.start(bench.act("stubborn"));
    std::thread::sleep(Duration::from_millis(100));
    let asked = Instant::now();
    attempt.drain();
    assert_eq!(wait(attempt).0, Outcome::Cancelled);
    assert!(asked.elapsed() >= Duration::from_millis(250), "the grace period is kept");
}

/// A script that starts four stubborn processes, one of them in a session of its own, and lists them in `pids`.
fn stubborn_family(pids: &Path) -> String {
    let pids = pids.display();
    format!(
        "trap '' TERM; echo $$ >> {pids}; (echo $(exec sh -c 'echo $PPID') >> {pids}; sleep 300) & \
         setsid sh -c 'echo $$ >> {pids}; sleep 300 & echo $! >> {pids}; wait' & wait; wait"
    )
}

fn time_limits_reach_grandchildren() {
    let bench = Bench::new();
    let pids = bench.path().join("pids");
    let job = Job { timeout_s: 1, ..bench.script(&stubborn_family(&pids)) };
    let (outcome, usage, _) = bench.run(job);
    assert_eq!(outcome, Outcome::TimedOut);
    assert!((1.0..10.0).contains(&usage.wall_s), "{usage:?}");
    assert_gone(&pids, 4);
}

fn killing_reaches_grandchildren() {
    let bench = Bench::new();
    let pids = bench.path().join("pids");
    let (attempt, _heard) = bench.start(bench.script(&stubborn_family(&pids)));
    wait_for_lines(&pids, 4);
    attempt.kill();
    assert_eq!(wait(attempt).0, Outcome::Cancelled);
    assert_gone(&pids, 4);

    std::fs::remove_file(&pids).unwrap();
    let (attempt, _heard) = bench.start(bench.script(&stubborn_family(&pids)));
    wait_for_lines(&pids, 4);
    drop(attempt);
    assert_gone(&pids, 4);
}

/// Starts the job in the file `job` and waits for it: an engine for others to kill.
fn stand_in_engine(job: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let bench = Bench::new();
    runtime.block_on(async {
        let (attempt, _heard) = bench.start(Job::read(job).unwrap());
        attempt.await;
    });
}

fn a_dead_engine_takes_everything_along() {
    let bench = Bench::new();
    let pids = bench.path().join("pids");
    let job = bench.path().join("given.json");
    std::fs::write(&job, serde_json::to_vec(&bench.script(&stubborn_family(&pids))).unwrap()).unwrap();
    let mut engine =
        std::process::Command::new(std::env::current_exe().unwrap()).arg("engine").arg(&job).spawn().unwrap();
    wait_for_lines(&pids, 4);
    engine.kill().unwrap();
    engine.wait().unwrap();
    assert_gone(&pids, 4);
}

fn nothing_outlives_its_stage() {
    let bench = Bench::new();
    assert_eq!(bench.run(bench.act("leave")).0, Outcome::Done);
    let pids = bench.path().join("pids");
    let script = format!("setsid sleep 300 & echo $! >> {}; echo > ${{outputs.y}}", pids.display());
    assert_eq!(bench.run(bench.script(&script)).0, Outcome::Done);
    assert_gone(&pids, 1);
}

/// Two commands under one warden: the orphan of the first dies with it, the orphan of the second lives on until that ends.
fn a_stray_dies_with_its_stage_and_leaves_others_alone() {
    let bench = Bench::new();
    let (first, second) = (bench.path().join("first"), bench.path().join("second"));
    let script = |pids: &Path, then: &str| {
        format!("setsid sh -c 'setsid sleep 300 & echo $! >> {}'; {then}; echo > ${{outputs.y}}", pids.display())
    };
    let (notes, _heard) = unbounded_channel();
    let executor = ProcessExecutor::new(bench.options.clone());
    let job = |number: u64, script: &str| {
        let mut job = Job { attempt: AttemptId(number), ..bench.script(script) };
        job.folder = bench.path().join(format!("attempt{number}"));
        job.outputs.get_mut("y").unwrap().path = Job::output_in(&job.folder, "y");
        job
    };
    let long = executor.start(job(2, &script(&second, "sleep 0.6")), notes.clone());
    let stray = wait_for_lines(&second, 1).remove(0);
    assert_eq!(wait(executor.start(job(1, &script(&first, "true")), notes)).0, Outcome::Done);
    assert_gone(&first, 1);
    assert!(is_alive(&stray), "it belongs to a stage that goes on");
    assert_eq!(wait(long).0, Outcome::Done);
    assert_gone(&second, 1);
}

fn a_real_time_signal_holds_nobody_up() {
    let bench = Bench::new();
    let outcome = bench.run(bench.script("sh -c 'kill -40 $$' & wait; kill -41 $$")).0;
    assert!(matches!(outcome, Outcome::Killed { signal: 41, .. }), "{outcome:?}");
    assert_eq!(bench.run(bench.script("echo > ${outputs.y}")).0, Outcome::Done);
}

fn a_lost_warden_takes_its_commands_along() {
    let bench = Bench::new();
    let (pids, warden) = (bench.path().join("pids"), bench.path().join("warden"));
    let script = format!("echo $PPID > {}; echo $$ > {}; sleep 300", warden.display(), pids.display());
    let (attempt, _heard) = bench.start(bench.script(&script));
    wait_for_lines(&pids, 1);
    let warden: i32 = wait_for_lines(&warden, 1)[0].parse().unwrap();
    // The command may be there before the warden has told of it, and nobody else could.
    std::thread::sleep(Duration::from_millis(500));
    rustix::process::kill_process(rustix::process::Pid::from_raw(warden).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    let (_, blame) = failed(&wait(attempt).0);
    assert_eq!(blame, Blame::Machine);
    assert_gone(&pids, 1);
}

const RECORDS: [&str; 4] = [r#"{"id":1}"#, r#"{"id":2}"#, r#"{"id":3}"#, r#"{"id":4}"#];

/// Answers every record with itself and notes it in `asked`.
fn echoing(asked: &Path, special: &str) -> String {
    let asked = asked.display();
    format!("while read -r line; do echo \"$line\" >> {asked}; {special} echo \"$line\"; done")
}

fn memo_counts(notes: &[Note]) -> (u64, u64) {
    let count = |note: &Note| if let Note::Memo { hits, misses } = note { Some((*hits, *misses)) } else { None };
    notes.iter().filter_map(count).next_back().unwrap()
}

fn records_are_answered_once() {
    let bench = Bench::new();
    let asked = bench.path().join("asked");
    let script = echoing(&asked, "");
    let (outcome, _, notes) = bench.run(bench.each(&script, &RECORDS));
    assert_eq!(outcome, Outcome::Done, "{}", bench.log());
    assert_eq!(bench.output(), RECORDS.join("\n") + "\n");
    assert_eq!(memo_counts(&notes), (0, 4));
    assert!(notes.contains(&Note::Progress { done: 4, total: 4, unit: "records".into() }));

    let more = [RECORDS[3], r#"{"id":5}"#, RECORDS[0]];
    let (outcome, _, notes) = bench.run(bench.each(&script, &more));
    assert_eq!((outcome, memo_counts(&notes)), (Outcome::Done, (2, 1)));
    assert_eq!(bench.output(), more.join("\n") + "\n", "the order is that of the input");
    assert_eq!(wait_for_lines(&asked, 5).len(), 5);

    let other = bench.run(bench.each(&format!("true; {script}"), &RECORDS));
    assert_eq!(memo_counts(&other.2), (0, 4), "another command, other answers");
    let dropping = bench.run(bench.each("while read -r line; do echo null; done", &RECORDS));
    assert_eq!((dropping.0, bench.output()), (Outcome::Done, String::new()));
    let bad = bench.run(bench.each(&script, &[RECORDS[0], "no record"]));
    let (message, blame) = failed(&bad.0);
    assert!(blame == Blame::Inputs && message.contains("line 2") && message.contains("no record"), "{message}");
}

fn failed_records_are_kept_apart() {
    let bench = Bench::new();
    let asked = bench.path().join("asked");
    let special = r#"case "$line" in *2*) echo '{"error": "two is bad"}'; continue;; *3*) exit 9;; esac;"#;
    let job = bench.each(&echoing(&asked, special), &RECORDS);
    let apart = job.failed_records();
    let message = failed(&bench.run(job.clone()).0).0;
    assert!(message.contains("2 of 4 records failed; the first is record 2: two is bad"), "{message}");
    let kept = std::fs::read_to_string(&apart).unwrap();
    assert!(kept.lines().count() == 2 && kept.contains("exit status: 9") && kept.contains(r#"{\"id\":3}"#), "{kept}");

    let fixed = std::fs::read_to_string(&asked).unwrap().lines().count();
    let (outcome, _, notes) = bench.run(job);
    assert!(matches!(outcome, Outcome::Failed { .. }));
    assert_eq!(memo_counts(&notes), (2, 2), "only the failed ones are asked again");
    assert_eq!(std::fs::read_to_string(&asked).unwrap().lines().count(), fixed + 3);
}

fn a_broken_record_command_is_given_up() {
    let bench = Bench::new();
    let records: Vec<String> = (0..200).map(|id| format!(r#"{{"id":{id}}}"#)).collect();
    let records: Vec<&str> = records.iter().map(String::as_str).collect();
    let (outcome, usage, _) = bench.run(bench.each("exit 1", &records));
    let message = failed(&outcome).0;
    assert!(message.contains("in a row") && message.contains("exit status: 1"), "{message}");
    assert!(usage.wall_s < 10.0, "{usage:?}");
    let chatty = bench.run(bench.each("while read -r line; do echo $line; echo loaded; done", &RECORDS));
    assert!(matches!(chatty.0, Outcome::Failed { .. }), "{:?}", chatty.0);
    let mut missing = bench.each("", &RECORDS);
    let Action::Command(command) = &mut missing.action else { unreachable!("`each` makes a command") };
    (command.shell, command.argv) = (false, vec!["no-such-program".into()]);
    assert!(failed(&bench.run(missing).0).0.contains("no-such-program"));
}

fn draining_a_record_stage_keeps_its_answers() {
    let bench = Bench::new();
    let asked: PathBuf = bench.path().join("asked");
    let job = Job { threads: 1, ..bench.each(&echoing(&asked, "sleep 0.1;"), &RECORDS) };
    let (attempt, _heard) = bench.start(job.clone());
    wait_for_lines(&asked, 2);
    attempt.drain();
    assert_eq!(wait(attempt).0, Outcome::Cancelled);
    let before = std::fs::read_to_string(&asked).unwrap().lines().count();
    assert!(before < 4, "it was stopped early");
    let (outcome, _, notes) = bench.run(job);
    assert_eq!(outcome, Outcome::Done);
    assert_eq!(memo_counts(&notes), (before as u64, 4 - before as u64), "the record at hand was finished");
}
