//! `mpcc completions` and `mpcc man`: what a shell and a reader want to know of the command line, made from its definition.

use clap::CommandFactory;

use super::Answer;
use crate::cli::{Cli, CompletionsArgs};
use crate::report::{DONE, Failure};
use crate::ui::say;

/// Prints a completion script.
pub(super) fn completions(args: &CompletionsArgs) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "mpcc", &mut script);
    say(String::from_utf8_lossy(&script).trim_end());
    Ok(DONE)
}

/// Prints the manual page: the program, then every command.
pub(super) fn man() -> Answer {
    let failed = |error: std::io::Error| Failure::machine(format_args!("the manual cannot be made: {error}"));
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page).map_err(failed)?;
    for below in command.get_subcommands().filter(|below| !below.is_hide_set() && below.get_name() != "help") {
        let man = clap_mangen::Man::new(below.clone());
        let (mut about, mut options) = (Vec::new(), Vec::new());
        man.render_description_section(&mut about).map_err(failed)?;
        man.render_options_section(&mut options).map_err(failed)?;
        page.extend(format!(".SH \"MPCC {}\"\n", below.get_name().to_uppercase()).bytes());
        // Sections of a command become parts of its own.
        for part in [about, options] {
            page.extend(String::from_utf8_lossy(&part).replace(".SH ", ".SS ").bytes());
        }
    }
    say(String::from_utf8_lossy(&page).trim_end());
    Ok(DONE)
}
