//! `mpcc model download`: a model from a hub into the Hugging Face cache.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mpcc_engine::resources::format_size;
use mpcc_stages::hub::{ENDPOINT, Hub, HubError, Progress};
use serde_json::json;

use super::args::DownloadArgs;
use super::place::{hub_id, without_network};
use crate::commands::Answer;
use crate::environment::{hub_cache, variable};
use crate::report::{DONE, Failure};
use crate::ui::{complain, say};

/// Downloads, prints where it lies.
pub(super) fn download(args: &DownloadArgs) -> Answer {
    let Some((id, revision)) = hub_id(&args.model) else {
        return Err(Failure::wrong(format_args!(
            "`{}` is no model of a hub; write org/name or org/name@revision",
            args.model
        )));
    };
    let cache = hub_cache().ok_or_else(|| Failure::wrong("where to? HF_HUB_CACHE, HF_HOME or HOME must be set"))?;
    if variable("HF_HUB_OFFLINE").is_some_and(|value| !["0", "false", "no", "off"].contains(&&*value.to_lowercase())) {
        let advice = without_network(id, Some(&cache));
        return Err(Failure::wrong(format_args!("HF_HUB_OFFLINE is set, so nothing is asked.\n{advice}")));
    }
    let endpoint = variable("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    let failed = |error: HubError| match error {
        HubError::Unreachable { .. } => {
            let advice = without_network(id, Some(&cache));
            Failure::machine(format_args!("{error}\nWhat has come is kept: the same command goes on with it. {advice}"))
        }
        _ if error.is_passing() => Failure::machine(error),
        _ => Failure::wrong(error),
    };
    let hub = Hub::new(&endpoint, variable("HF_TOKEN"), &cache).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::machine(format_args!("no runtime: {error}")))?;
    let mut shown = Shown::new(args.json);
    let bar = shown.bar.clone();
    let hub = hub.on_wait(move |why, pause| {
        bar.suspend(|| complain(format_args!("{why}; asked again in {:.0} s", pause.as_secs_f64())));
    });
    let fetched = runtime.block_on(hub.download(id, revision, &mut |progress| shown.show(progress)));
    shown.bar.finish_and_clear();
    let fetched = fetched.map_err(failed)?;
    let tokenizer = fetched.files.iter().any(|file| file == "tokenizer.json");
    if !tokenizer {
        complain(
            "warning: there is no tokenizer.json; docs/models.md says how to make one of the files that are there",
        );
    }
    if args.json {
        say(json!({
            "id": id, "revision": revision, "commit": fetched.commit, "dir": fetched.dir, "files": fetched.files,
            "bytes": fetched.bytes, "downloaded_bytes": fetched.downloaded,
        }));
        return Ok(DONE);
    }
    say(format_args!("{id}@{}", fetched.commit));
    say(fetched.dir.display());
    let (count, bytes) = (fetched.files.len(), format_size(fetched.bytes));
    say(format_args!("{count} files, {bytes}, of which {} came now", format_size(fetched.downloaded)));
    Ok(DONE)
}

/// A bar on a terminal, else a line a file.
struct Shown {
    bar: ProgressBar,
    quiet: bool,
    /// Which file was shown last.
    at: Option<usize>,
}

impl Shown {
    fn new(json: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && !json;
        let bar = if terminal { ProgressBar::new(0) } else { ProgressBar::hidden() };
        let template = "{msg} {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.enable_steady_tick(Duration::from_millis(200));
        Self { bar, quiet: terminal || json, at: None }
    }

    fn show(&mut self, progress: Progress<'_>) {
        let Progress { file, at, of, bytes, size } = progress;
        if self.at != Some(at) {
            self.at = Some(at);
            self.bar.set_message(format!("{}/{of} {file}", at + 1));
            self.bar.set_length(size);
            self.bar.reset_eta();
            if !self.quiet {
                complain(format_args!("{}/{of} {file}, {}", at + 1, format_size(size)));
            }
        }
        self.bar.set_position(bytes);
    }
}
