//! The engine dies, the jobs go on, and the next engine takes over.

use std::time::Duration;

use super::{Lab, PATH, QUICK, message};
use crate::cli::bench::{Bench, Ended, signal};

/// One stage that takes a while, beside one that is quick, above one more.
const SLOW: &str = r#"
mpcc: 1
name: slow
stages:
  slow: { run: "echo slow >> ran; echo $SLURMD_NODENAME $$ $PPID >> places; sleep 3; echo slept > ${outputs.y}; echo good night", outputs: { y: file } }
  quick: { run: "echo quick >> ran; sleep 1; echo was quick > ${outputs.y}", outputs: { y: file } }
  both: { run: "echo both >> ran; cat ${inputs.x} > ${outputs.y}", inputs: { x: [slow, quick] }, outputs: { y: file } }
"#;

fn ran(bench: &Bench) -> Vec<String> {
    let mut ran = bench.ran();
    ran.sort();
    ran
}

#[test]
fn a_killed_engines_jobs_are_followed_to_their_end() {
    let Some(lab) = Lab::new(SLOW) else { return };
    let head = lab.start("--json");
    lab.bench.wait_for_lines("ran", 2);
    signal(&head, "KILL");
    head.wait_with_output().unwrap();
    // By now the quick stage has ended with nobody watching.
    std::thread::sleep(Duration::from_millis(1500));
    let run = lab.run("--json").code(0);
    assert_eq!(run.counts(), [3, 0, 0, 0]);
    assert_eq!(ran(&lab.bench), ["both", "quick", "slow"], "each was executed once");
    assert_eq!(lab.shown("both"), "slept\nwas quick\n");
    assert_eq!(lab.bench.mpcc("logs slow").code(0).out, "good night\n", "the new run has the log");
    assert_eq!(lab.cluster.jobs().len(), 3);
    assert_eq!(lab.run("--json").code(0).counts(), [0, 3, 0, 0]);
}

#[test]
fn a_job_whose_number_was_never_written_down_is_found_by_its_name() {
    let Some(mut lab) = Lab::new(SLOW) else { return };
    // An engine that dies between the submission and its answer: this sbatch submits, then kills who has called it.
    lab.put_before("sbatch", &format!("#!/bin/sh\nPATH={PATH}\nsbatch \"$@\" > /dev/null\nkill -KILL $PPID\n"));
    let killed = lab.run("slow");
    assert_eq!(killed.code, -1, "{}{}", killed.out, killed.err);
    lab.put_nothing_before();
    let run = lab.run("slow --json").code(0);
    assert_eq!(run.counts(), [1, 0, 0, 0]);
    assert_eq!(ran(&lab.bench), ["slow"]);
    assert_eq!(lab.cluster.jobs().len(), 1, "nothing was submitted twice");

    // One that dies before the submission leaves a record and no job.
    lab.put_before("sbatch", "#!/bin/sh\nkill -KILL $PPID\n");
    assert_eq!(lab.run("quick").code, -1);
    lab.put_nothing_before();
    assert_eq!(lab.run("quick --json").code(0).counts(), [1, 0, 0, 0]);
    assert_eq!(ran(&lab.bench), ["quick"]);
    assert_eq!(lab.cluster.jobs().len(), 2);
}

#[test]
fn an_answer_that_is_lost_leads_to_no_second_submission() {
    let Some(mut lab) = Lab::new(SLOW) else { return };
    let lost = "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation";
    let script = format!("#!/bin/sh\nPATH={PATH}\nsbatch \"$@\" > /dev/null\necho '{lost}' >&2\nexit 1\n");
    lab.put_before("sbatch", &script);
    let run = lab.run("quick --json").code(0);
    assert!(run.out.contains("Socket timed out"), "{}", run.out);
    assert_eq!(ran(&lab.bench), ["quick"]);
    assert_eq!(lab.cluster.jobs().len(), 1);

    // This one is not taken, once: it is submitted again.
    let away = lost.replace("Socket timed out on send/recv operation", "Unable to contact slurm controller");
    let script = format!(
        "#!/bin/sh\nPATH={PATH}\necho tried >> tries\ntest $(wc -l < tries) = 2 && exec sbatch \"$@\"\necho '{away}' >&2\nexit 1\n"
    );
    lab.put_before("sbatch", &script);
    lab.run("slow --json").code(0);
    assert_eq!(ran(&lab.bench), ["slow"]);
    assert_eq!((lab.bench.read("tries").lines().count(), lab.cluster.jobs().len()), (2, 2));
}

#[test]
fn a_controller_that_is_away_ends_nothing() {
    let Some(mut lab) = Lab::new(SLOW) else { return };
    let head = lab.start("--json");
    lab.bench.wait_for_lines("ran", 2);
    lab.cluster.stop_controller();
    // Both stages end meanwhile.
    std::thread::sleep(Duration::from_secs(4));
    lab.cluster.start_controller();
    let run = Ended::from(head.wait_with_output().unwrap()).code(0);
    assert_eq!(run.counts(), [3, 0, 0, 0]);
    assert_eq!(ran(&lab.bench), ["both", "quick", "slow"]);
    assert_eq!(lab.cluster.jobs().len(), 3);
}

#[test]
fn a_run_without_slurm_says_so_before_it_begins() {
    let mut bench = Bench::new(SLOW);
    bench.variables.push(("PATH".into(), "/nowhere".into()));
    let run = bench.mpcc(&format!("run pipeline.yaml {QUICK}")).code(3);
    assert!(run.err.contains("`sbatch` is not on the PATH"), "{}", run.err);
    assert!(bench.mpcc("plan pipeline.yaml --executor slurm").code(0).out.contains("slow"));
}

#[test]
fn one_engine_leaves_an_unfinished_stage_to_a_later_one() {
    let Some(lab) = Lab::new(SLOW) else { return };
    let head = lab.start("slow --json");
    lab.bench.wait_for_lines("ran", 1);
    signal(&head, "KILL");
    head.wait_with_output().unwrap();
    lab.cluster.ask("scancel", &["--me"]);
    lab.cluster.wait_until_idle();
    let run = lab.run("slow --json").code(0);
    assert_eq!(run.counts(), [1, 0, 0, 0], "a job that ended badly while nobody watched is submitted again");
    assert_eq!(ran(&lab.bench), ["slow", "slow"]);

    // Somebody's scancel under the eyes of the engine is a failure of the machine.
    let _ = std::fs::remove_dir_all(lab.bench.path(".mpcc"));
    let head = lab.start("slow --json");
    lab.bench.wait_for_lines("ran", 1);
    lab.cluster.ask("scancel", &["--me"]);
    let run = Ended::from(head.wait_with_output().unwrap()).code(3);
    let said = message(&run, "slow");
    assert!(said.contains("somebody cancelled Slurm job"), "{said}");
}
