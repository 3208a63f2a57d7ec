//! The executor `slurm` against a real cluster.

mod cluster;
mod ends;
mod heads;
mod losses;

use std::process::Child;

use crate::cli::bench::{Bench, Ended};
use cluster::Cluster;

/// Options that make a run quick to notice things.
const QUICK: &str = "--executor slurm --slurm-poll 0.1 --slurm-settle 1 --grace 3";

/// Where the tests' programs are.
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A folder with a pipeline, and a cluster to run it on. The folder goes first: jobs that are still there end with it.
struct Lab {
    bench: Bench,
    cluster: Cluster,
}

impl Lab {
    fn new(yaml: &str) -> Option<Self> {
        let cluster = Cluster::start()?;
        let mut bench = Bench::new(yaml);
        bench.variables.push(("SLURM_CONF".into(), cluster.configuration().display().to_string()));
        Some(Self { bench, cluster })
    }

    /// Runs the pipeline on the cluster to its end.
    fn run(&self, words: &str) -> Ended {
        self.bench.mpcc(&format!("run pipeline.yaml {QUICK} {words}"))
    }

    /// Starts to.
    fn start(&self, words: &str) -> Child {
        self.bench.start(&format!("run pipeline.yaml {QUICK} {words}"))
    }

    /// Puts a script on the PATH in front of the real program.
    fn put_before(&mut self, program: &str, script: &str) {
        let name = format!("bin/{program}");
        self.bench.write(&name, script);
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(self.bench.path(&name), mode).unwrap();
        let path = format!("{}:{PATH}", self.bench.path("bin").display());
        self.bench.variables.push(("PATH".into(), path));
    }

    /// From here on the real programs are found again.
    fn put_nothing_before(&mut self) {
        self.bench.variables.push(("PATH".into(), PATH.into()));
    }

    /// Text of the output `port`.
    fn shown(&self, port: &str) -> String {
        let path = self.bench.mpcc(&format!("show {port}")).code(0).out;
        std::fs::read_to_string(path.trim()).unwrap()
    }
}

/// Why a node failed, from the events of a run.
fn message(run: &Ended, node: &str) -> String {
    let failed = |event: &serde_json::Value| event["event"] == "node.failed" && event["node"] == node;
    let event = run.json().into_iter().find(failed).unwrap_or_else(|| panic!("{node} did not fail: {}", run.out));
    event["message"].as_str().unwrap().to_owned()
}

const WORK: &str = r#"
mpcc: 1
name: work
params: { where: anywhere }
stages:
  numbers: { run: "echo numbers >> ran; seq 100 > ${outputs.y}", outputs: { y: file } }
  tree: { run: "echo tree >> ran; cp ${inputs.x} ${outputs.y}/one; tac ${inputs.x} > ${outputs.y}/two", inputs: { x: numbers }, outputs: { y: dir } }
  half: { matrix: { n: [1, 2] }, run: "echo half >> ran; sed -n '${matrix.n}~2p' ${inputs.x} > ${outputs.y}", inputs: { x: numbers }, outputs: { y: file } }
  echo:
    each: records
    run: "while read -r line; do echo \"$line\"; done"
    inputs: { records: { file: records.jsonl } }
    outputs: { y: records }
  granted:
    run: "echo $CUDA_VISIBLE_DEVICES $SLURM_CPUS_PER_TASK $SLURM_MEM_PER_NODE $OMP_NUM_THREADS > ${outputs.y}"
    resources: { cpus: 2, memory: 150MiB, gpus: 2 }
    outputs: { y: file }
  clean:
    run: "echo \"$${OUTSIDE:-no} $${CHOSEN:-no} $${TOKEN:-no} $${DECLARED:-no}\" > ${outputs.y}; echo the token is $TOKEN"
    env: { DECLARED: declared }
    secrets: [TOKEN]
    outputs: { y: file }
  world: { uses: scenes.generate, with: { part: test, scenes: 4, tasks: 1 } }
  all: { run: "echo all >> ran; cat ${inputs.x} ${inputs.t}/one > ${outputs.y}", inputs: { x: "half[*]", t: tree }, outputs: { y: { type: file, path: results/all.txt } } }
"#;

#[test]
fn a_pipeline_runs_on_a_cluster_as_it_does_at_home() {
    let Some(mut lab) = Lab::new(WORK) else { return };
    let variables = [("OUTSIDE", "outside"), ("CHOSEN", "chosen"), ("TOKEN", "hunter2")];
    lab.bench.variables.extend(variables.map(|(name, value)| (name.to_owned(), value.to_owned())));
    lab.bench.write("records.jsonl", "{\"id\":1}\n{\"id\":2}\n");
    let run = lab.run("--json --slurm-env CHOSEN").code(0);
    assert_eq!(run.counts(), [9, 0, 0, 0]);
    assert_eq!(lab.shown("granted"), "0,1 2 150 2\n", "the cluster gives what was asked for, whatever this host has");
    assert_eq!(lab.shown("clean"), "no chosen hunter2 declared\n");
    assert_eq!(lab.bench.mpcc("logs clean").code(0).out, "the token is ***\n");
    assert_eq!(lab.bench.read("results/all.txt").lines().count(), 200);
    let jobs = lab.cluster.jobs();
    assert!(
        jobs.len() == 9 && jobs.iter().all(|job| job.starts_with("mpcc-") && job.ends_with(" COMPLETED")),
        "{jobs:?}"
    );
    let mut ran = lab.bench.ran();
    ran.sort();
    assert_eq!(ran, ["all", "half", "half", "numbers", "tree"]);

    assert_eq!(lab.run("--json").code(0).counts(), [0, 9, 0, 0]);
    let at_home = lab.bench.mpcc("run pipeline.yaml all --json").code(0);
    assert_eq!(at_home.counts(), [0, 5, 0, 0], "the executor is in no recipe");
    lab.run("").code(0);
    lab.bench.mpcc("run pipeline.yaml all echo world --store home").code(0);
    let digests = |store: &str| {
        let lines = lab.bench.mpcc(&format!("runs show --digests --store {store}")).code(0).out;
        let apart = |line: &&str| !["granted", "clean"].iter().any(|node| line.starts_with(node));
        lines.lines().filter(apart).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(digests(".mpcc"), digests("home"));
    lab.bench.mpcc("cache verify").code(0);
    let partial = std::fs::read_dir(lab.bench.path(".mpcc/partial")).unwrap().count();
    assert_eq!(partial, 0, "nothing is left of the attempts");
}
