//! The command line: subcommands, configuration, exit codes.
//!
//! | exit code | meaning |
//! |---|---|
//! | 0 | all passed or were skipped; the command did what it was asked |
//! | 1 | a scenario failed or could not be judged, nothing matched, something is missing |
//! | 2 | a scenario was inconclusive |
//! | 64 | bad usage, or a script that does not compile |
//! | 70 | a bug of ours |
//! | 130 | interrupted |

pub mod api;
mod cell;
mod config;
mod doctor;
mod engine;
pub mod kernel;
mod repl;
mod replay;
mod run;
mod snapshot;

use std::io::Write;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

pub use config::Config;

/// The exit code for bad usage (`EX_USAGE`).
pub const USAGE: u8 = 64;
/// The exit code for a bug of ours (`EX_SOFTWARE`).
pub const INTERNAL: u8 = 70;

/// A scriptable laboratory for Linux schedulers.
#[derive(Debug, Parser)]
#[command(name = "cryoscope", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run scenarios: each boots a machine of its own
    Run(run::Args),
    /// Report once more on a run, from the events that `run --json` wrote
    Replay(replay::Args),
    /// Work with a machine by hand: a prompt, or a script on standard input
    Repl(repl::Args),
    /// Run one scenario, as `run` says on standard input
    #[command(hide = true)]
    Cell,
    /// Print everything that a script can name
    Api(api::ApiArgs),
    /// List, fetch and inspect kernels
    Kernel(kernel::KernelArgs),
    /// Look into files that `snapshot.save(..)` wrote
    Snapshot(snapshot::Args),
    /// Say what this machine can do, and how to mend what is missing
    Doctor,
}

/// Why a command did not do what it was asked: what to say, and the exit code.
#[derive(Debug)]
pub struct Failure {
    /// For standard error, after "error: ".
    pub message: String,
    /// The exit code.
    pub code: u8,
}

impl Failure {
    /// Bad usage.
    pub fn usage(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: USAGE }
    }

    /// Anything else that the message explains.
    pub fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: 1 }
    }
}

/// A panic anywhere is a bug of ours, and the end of this process with whatever it began.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|panic| {
        say_panic(&panic.to_string(), &std::backtrace::Backtrace::capture());
        std::process::exit(INTERNAL.into());
    }));
}

/// The whole program: parses, dispatches, gives the exit code.
pub fn main() -> ExitCode {
    end_on_panic();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(refuse(&error)),
    };
    let config = Config::from_environment();
    let done = match cli.command {
        Command::Run(args) => run::run(&args, &config),
        Command::Replay(args) => replay::run(&args, &config),
        Command::Repl(args) => repl::run(&args, &config),
        Command::Cell => cell::run(&config),
        Command::Api(args) => api::run(&args),
        Command::Kernel(args) => config.cache().map(|cache| kernel::run(&args, cache)),
        Command::Snapshot(args) => snapshot::run(&args),
        Command::Doctor => doctor::run(&config),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            say(&format!("error: {}\n", failure.message));
            ExitCode::from(failure.code)
        }
    }
}

/// Says what clap has to say: help and version are no errors, all else is bad usage.
fn refuse(error: &clap::Error) -> u8 {
    let text = error.render().to_string();
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        print(&text);
        return 0;
    }
    say(&text);
    USAGE
}

/// Writes to standard output; a reader that is gone is no error.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes to standard error; a reader that is gone is no error.
fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

fn say_panic(panic: &str, backtrace: &std::backtrace::Backtrace) {
    let mut text = format!(
        "cryoscope: internal error: {panic}\n\
         This is a bug in cryoscope {}, not in your script or scheduler. Please report it with \
         the lines above,\nthe command and the script that led here, and what `cryoscope doctor` \
         prints.\n",
        env!("CARGO_PKG_VERSION")
    );
    if backtrace.status() == std::backtrace::BacktraceStatus::Captured {
        text.push_str(&format!("{backtrace}\n"));
    } else {
        text.push_str("RUST_BACKTRACE=1 shows where it happened.\n");
    }
    say(&text);
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_and_version_are_no_errors_and_the_rest_is_bad_usage() {
        let cases = [
            (&["cryoscope", "--version"][..], 0),
            (&["cryoscope", "--help"], 0),
            (&["cryoscope", "doctor", "--help"], 0),
            (&["cryoscope"], USAGE),
            (&["cryoscope", "doktor"], USAGE),
            (&["cryoscope", "doctor", "--fix"], USAGE),
        ];
        for (args, code) in cases {
            let error = Cli::try_parse_from(args).unwrap_err();
            assert_eq!(refuse(&error), code, "{args:?}");
        }
    }

    /// The payload of the next test, run in a process of its own.
    #[test]
    #[ignore = "ends its process; run by a_bug_ends_with_70_and_says_how_to_report_it"]
    fn panics() {
        end_on_panic();
        std::thread::spawn(|| panic!("two and two are five")).join().unwrap();
    }

    #[test]
    fn a_bug_ends_with_70_and_says_how_to_report_it() {
        let run = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "cli::tests::panics", "--ignored", "--nocapture"])
            .output()
            .unwrap();
        let said = String::from_utf8(run.stderr).unwrap();
        assert_eq!(run.status.code(), Some(70), "{said}");
        assert!(said.contains("cryoscope: internal error: "), "{said}");
        assert!(said.contains("two and two are five"), "{said}");
        assert!(said.contains("Please report it with"), "{said}");
    }
}
