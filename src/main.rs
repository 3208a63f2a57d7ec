//! `mpcc`: the program. The only place that prints, reads the environment, or exits.

mod cli;
mod commands;
mod environment;
mod invocation;
mod pipeline;
mod report;
mod slurm;
mod ui;

use std::process::ExitCode;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            ui::complain(&failure.text);
            ExitCode::from(failure.code)
        }
    }
}
