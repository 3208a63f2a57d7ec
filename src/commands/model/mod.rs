//! `mpcc model`: one thin file a command.

mod args;
mod ask;
mod bench;
mod check;
mod download;
mod place;
mod rewrite;
mod serve;

pub(crate) use args::ModelArgs;
use args::ModelCommand;

use super::Answer;

/// Does what was typed.
pub(super) fn model(command: &ModelCommand) -> Answer {
    match command {
        ModelCommand::Check(args) => check::check(args),
        ModelCommand::Ask(args) => ask::ask(args),
        ModelCommand::Bench(args) => bench::bench(args),
        ModelCommand::Convert(args) => rewrite::convert(args),
        ModelCommand::MergeAdapter(args) => rewrite::merge(args),
        ModelCommand::Download(args) => download::download(args),
        ModelCommand::Serve(args) => serve::serve(args),
    }
}
