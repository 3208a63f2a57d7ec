//! A Slurm cluster of four hosts on the loopback interface: real daemons, a folder of its own, ports of its own, fake GPUs.
//!
//! All daemons run in the foreground as children of the test, so that each can be killed and started again; what they have
//! started besides is found by the cluster's configuration in its environment. Dropping the cluster ends all of it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Hosts of a cluster.
pub(crate) const HOSTS: usize = 4;

/// One cluster at a time: the machine is small, and some tests measure time.
static ALONE: Mutex<()> = Mutex::new(());

/// A running cluster.
pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    munged: Option<Child>,
    controller: Option<Child>,
    hosts: Vec<Option<Child>>,
    watchdog: Arc<AtomicBool>,
    _alone: MutexGuard<'static, ()>,
}

/// The configuration: what makes a cluster small, quick and independent of the machine's own.
const CONFIGURATION: &str = "
ClusterName=mpcc
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=sched_min_interval=50000,batch_sched_delay=0,bf_interval=1
SlurmdParameters=config_overrides
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
PropagateResourceLimits=NONE
MpiDefault=none
GresTypes=gpu
ReturnToService=2
JobRequeue=1
SlurmdTimeout=4
MessageTimeout=3
KillWait=2
DefMemPerCPU=200
";

impl Cluster {
    /// Starts one; nothing where there is no Slurm, which is a failure when everything must be tested.
    pub(crate) fn start() -> Option<Self> {
        let lacks: Vec<&str> =
            ["munged", "slurmctld", "slurmd", "sbatch"].into_iter().filter(|program| find(program).is_none()).collect();
        let is_root = fs::metadata("/proc/self").is_ok_and(|entry| std::os::unix::fs::MetadataExt::uid(&entry) == 0);
        if !lacks.is_empty() || !is_root {
            #[allow(clippy::disallowed_methods, reason = "the one variable that turns skips into failures")]
            let required = std::env::var_os("MPCC_TEST_ALL").is_some();
            assert!(!required, "Slurm is needed (packages slurm-wlm and munge, as root); missing: {lacks:?}");
            println!("skipped: needs Slurm");
            return None;
        }
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let folder = tempfile::Builder::new().prefix("mpcc-slurm-").tempdir().unwrap();
        let mut cluster = Self {
            folder,
            munged: None,
            controller: None,
            hosts: (0..HOSTS).map(|_| None).collect(),
            watchdog: Arc::default(),
            _alone: alone,
        };
        cluster.watch();
        cluster.configure();
        cluster.start_munged();
        cluster.start_controller();
        (1..=HOSTS).for_each(|host| cluster.start_host(host));
        cluster.wait("all hosts to be idle", |cluster| {
            let idle = cluster.ask("sinfo", &["--noheader", "--Node", "--format=%T"]);
            idle.lines().filter(|line| *line == "idle").count() == HOSTS
        });
        Some(cluster)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn configure(&self) {
        let here = self.folder.path().display();
        for folder in ["munge", "state", "spool", "log", "dev"] {
            fs::create_dir(self.path(folder)).unwrap();
        }
        for gpu in 0..2 {
            let device = self.path(&format!("dev/nvidia{gpu}"));
            let made = Command::new("mknod").arg(device).args(["c", "1", "3"]).status().unwrap();
            assert!(made.success());
        }
        let ports = free_ports(HOSTS + 1);
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
        let name = name.trim().split('.').next().unwrap();
        let mut text = format!(
            "{CONFIGURATION}SlurmctldHost={name}(127.0.0.1)\nSlurmctldPort={}\nAuthInfo=socket={here}/munge/socket,cred_expire=5\n\
             StateSaveLocation={here}/state\nSlurmdSpoolDir={here}/spool/%n\nSlurmctldPidFile={here}/log/controller.pid\n\
             SlurmdPidFile={here}/log/%n.pid\nSlurmctldLogFile={here}/log/controller.log\nSlurmdLogFile={here}/log/%n.log\n",
            ports[0]
        );
        for (at, port) in ports[1..].iter().enumerate() {
            text += &format!(
                "NodeName=n{} NodeHostname={name} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=2000 Gres=gpu:2\n",
                at + 1
            );
        }
        text += "PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n";
        fs::write(self.configuration(), text).unwrap();
        let gres = format!("AutoDetect=off\nNodeName=n[1-{HOSTS}] Name=gpu File={here}/dev/nvidia[0-1]\n");
        fs::write(self.path("gres.conf"), gres).unwrap();
    }

    /// The configuration file, for `SLURM_CONF`.
    pub(crate) fn configuration(&self) -> PathBuf {
        self.path("slurm.conf")
    }

    /// A daemon in the foreground.
    fn daemon(&self, program: &str, words: &[String]) -> Child {
        let log = fs::File::options().create(true).append(true).open(self.path("log/daemons.log")).unwrap();
        let mut command = Command::new(find(program).unwrap());
        command.args(words).env_clear().env("PATH", PATH).env("SLURM_CONF", self.configuration());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
    }

    fn start_munged(&mut self) {
        let key = self.path("munge/key");
        let mut bytes = [0; 64];
        std::io::Read::read_exact(&mut fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
        fs::write(&key, bytes).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
        let file = |option: &str, name: &str| format!("--{option}={}", self.path("munge").join(name).display());
        let words = [
            file("key-file", "key"),
            file("seed-file", "seed"),
            file("pid-file", "pid"),
            file("log-file", "log"),
            file("socket", "socket"),
            "--foreground".to_owned(),
            "--force".to_owned(),
        ];
        self.munged = Some(self.daemon("munged", &words));
        self.wait("munged", |cluster| cluster.path("munge/socket").exists());
    }

    /// Starts the controller, or starts it again.
    pub(crate) fn start_controller(&mut self) {
        self.controller = Some(self.daemon("slurmctld", &["-D".to_owned()]));
        self.wait("slurmctld", |cluster| cluster.ask("scontrol", &["ping"]).contains("is UP"));
    }

    /// Stops the controller in good order, which saves its state: one that is killed may forget the jobs of its last seconds.
    pub(crate) fn stop_controller(&mut self) {
        let Some(mut controller) = self.controller.take() else { return };
        let asked = Command::new("kill").args(["-TERM", &controller.id().to_string()]).status().unwrap();
        assert!(asked.success());
        controller.wait().unwrap();
    }

    /// Starts the daemon of host `number`, from 1.
    pub(crate) fn start_host(&mut self, number: usize) {
        self.hosts[number - 1] = Some(self.daemon("slurmd", &["-D".to_owned(), "-N".to_owned(), format!("n{number}")]));
    }

    /// Kills the daemon of a host by name; what runs there lives on.
    pub(crate) fn kill_host(&mut self, name: &str) {
        let number: usize = name.trim_start_matches('n').parse().unwrap();
        end(&mut self.hosts[number - 1]);
    }

    /// Kills the daemon of a host and says that it is down, as an operator may who does not wait for Slurm to find out.
    pub(crate) fn give_up_host(&mut self, name: &str) {
        self.kill_host(name);
        self.ask("scontrol", &["update", &format!("NodeName={name}"), "State=DOWN", "Reason=lost"]);
    }

    /// Standard output of one of Slurm's commands, whatever its end.
    pub(crate) fn ask(&self, program: &str, words: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(words).env_clear().env("PATH", PATH).env("SLURM_CONF", self.configuration());
        let output = command.stdin(Stdio::null()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Name and state of every job that Slurm remembers.
    pub(crate) fn jobs(&self) -> Vec<String> {
        let text = self.ask("squeue", &["--noheader", "--states=all", "--format=%j %T"]);
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until no job is left that may still do something.
    pub(crate) fn wait_until_idle(&self) {
        self.wait("the queue to be empty", |cluster| cluster.ask("squeue", &["--noheader"]).trim().is_empty());
    }

    /// Waits for something, and shows the logs when it does not come.
    pub(crate) fn wait(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            if started.elapsed() > Duration::from_secs(40) {
                let log = |name: &str| fs::read_to_string(self.path(&format!("log/{name}.log"))).unwrap_or_default();
                panic!("waited in vain for {what}\n{}\n{}", log("daemons"), log("controller"));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Ends everything after a while, so that a test that waits for a run fails instead of waiting for ever.
    fn watch(&self) {
        let (over, configuration) = (self.watchdog.clone(), self.configuration());
        std::thread::spawn(move || {
            let started = Instant::now();
            while !over.load(Ordering::Relaxed) {
                if started.elapsed() > LONGEST {
                    started_with(&configuration).into_iter().for_each(kill);
                    return;
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        });
    }
}

/// How long one test may take.
const LONGEST: Duration = Duration::from_secs(120);

/// Processes that know the cluster of this configuration: its daemons, jobs and their descendants, and the engines that use it.
fn started_with(configuration: &Path) -> Vec<u32> {
    let mark = configuration.as_os_str().as_encoded_bytes();
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let ours = |number: &u32| {
        let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|window| window == mark)
    };
    numbers.filter(ours).collect()
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.watchdog.store(true, Ordering::Relaxed);
        for daemon in self.hosts.iter_mut().chain([&mut self.controller, &mut self.munged]) {
            end(daemon);
        }
        // Jobs start processes while they are being killed.
        for _ in 0..50 {
            let left = started_with(&self.configuration());
            if left.is_empty() {
                break;
            }
            left.iter().for_each(|number| kill(*number));
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Where Slurm's programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn find(program: &str) -> Option<PathBuf> {
    PATH.split(':').map(|folder| Path::new(folder).join(program)).find(|path| path.is_file())
}

/// Ports that nobody uses now.
fn free_ports(count: usize) -> Vec<u16> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect()
}

fn end(daemon: &mut Option<Child>) {
    if let Some(mut child) = daemon.take() {
        // It is gone already when it has crashed.
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// Kills one process.
pub(crate) fn kill(number: u32) {
    // Gone already is as good.
    let _ = Command::new("kill").args(["-KILL", &number.to_string()]).stderr(Stdio::null()).status();
}
