//! Hosts that are lost under a running stage.

use super::Lab;
use super::cluster::kill;
use crate::cli::bench::Ended;

/// A stage that says where it runs, and ends when it may.
const HELD: &str = r#"
mpcc: 1
name: held
stages:
  held:
    run: "echo $SLURMD_NODENAME $$ $PPID >> places; while ! test -e go; do sleep 0.1; done; echo $SLURMD_NODENAME > ${outputs.y}"
    outputs: { y: file }
"#;

/// The host of the stage's start `number`, its process, and the worker above it.
fn place(lab: &Lab, number: usize) -> (String, u32, u32) {
    lab.cluster.wait("a start", |_| lab.bench.read("places").lines().count() >= number);
    let line = lab.bench.read("places").lines().nth(number - 1).unwrap().to_owned();
    let words: Vec<&str> = line.split(' ').collect();
    (words[0].to_owned(), words[1].parse().unwrap(), words[2].parse().unwrap())
}

/// The process that started `number`.
fn parent(number: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_host_that_dies_takes_its_start_along_and_slurm_starts_another() {
    let Some(mut lab) = Lab::new(HELD) else { return };
    let head = lab.start("--json");
    let (host, stage, worker) = place(&lab, 1);
    let step = parent(worker);
    lab.cluster.kill_host(&host);
    [step, worker, stage].into_iter().for_each(kill);
    lab.cluster.give_up_host(&host);
    let (second, ..) = place(&lab, 2);
    assert_ne!(second, host);
    lab.bench.write("go", "");
    let run = Ended::from(head.wait_with_output().unwrap()).code(0);
    assert_eq!(run.counts(), [1, 0, 0, 0]);
    assert_eq!(lab.shown("held"), format!("{second}\n"));
    assert_eq!(lab.cluster.jobs().len(), 1, "it is the same job");
}

#[test]
fn a_host_that_is_only_cut_off_stops_by_itself() {
    let Some(mut lab) = Lab::new(HELD) else { return };
    let head = lab.start("--json");
    let (host, stage, worker) = place(&lab, 1);
    lab.cluster.kill_host(&host);
    let (second, ..) = place(&lab, 2);
    assert_ne!(second, host);
    lab.cluster.wait("the first start to end", |_| {
        [stage, worker].iter().all(|number| {
            let stat = std::fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with('Z'))
        })
    });
    lab.bench.write("go", "");
    let run = Ended::from(head.wait_with_output().unwrap()).code(0);
    assert_eq!(run.counts(), [1, 0, 0, 0]);
    assert_eq!(lab.shown("held"), format!("{second}\n"), "the later start was taken");
    assert_eq!(lab.bench.read("places").lines().count(), 2);
}

#[test]
fn a_loss_that_slurm_may_not_mend_is_told_and_tried_again() {
    let Some(mut lab) = Lab::new(&HELD.replace("outputs: { y: file }", "retries: 1\n    outputs: { y: file }")) else {
        return;
    };
    let head = lab.start("--json --slurm-option=--no-requeue");
    let (host, ..) = place(&lab, 1);
    lab.cluster.give_up_host(&host);
    let (second, ..) = place(&lab, 2);
    assert_ne!(second, host);
    lab.bench.write("go", "");
    let run = Ended::from(head.wait_with_output().unwrap()).code(0);
    let told = run.json().into_iter().find(|event| event["event"] == "node.retrying").unwrap();
    assert!(told["message"].as_str().unwrap().contains("NODE_FAIL"), "{told}");
    assert_eq!(lab.cluster.jobs().len(), 2);
    assert_eq!(lab.shown("held"), format!("{second}\n"));
}
