//! `cryoscope repl`: a machine that runs between prompts, and scripts input by input.
//!
//! ```text
//!  kernel ─▶ boot ─▶ ┌─▶ read an input ─▶ evaluate, or obey ─▶ show ─┐ ─▶ stop the machine
//!                    └──────────── the machine runs ─────────────────┘
//! ```
//!
//! At a terminal inputs come from an editor (`editor.rs`); otherwise all of standard input is read
//! and taken apart into inputs, and the first error ends it.

mod boot;
mod commands;
mod editor;
mod interrupt;
mod session;
mod show;
mod tables;

use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args as ClapArgs;

use super::{Config, Failure};
use crate::scenario::BootPath;
use crate::scenario::lab::LabOps;
use crate::scenario::live::Lab;
use crate::script::repl::{Interactive, on_big_stack};
use crate::snapshot::Snapshot;
use crate::vm::EngineChoice;
use interrupt::Interrupts;
use session::Repl;
use show::Voice;

/// Work with a machine by hand: a prompt, or a script on standard input
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// Look at a snapshot that `snapshot.save(..)` wrote, without a machine
    #[arg(value_name = "FILE", conflicts_with_all = ["scheduler", "engine", "kernel", "boot", "topology", "memory", "clang"])]
    file: Option<PathBuf>,
    /// Run this scheduler: a .bpf.c, a .bpf.o, an executable, or none, the kernel's own
    #[arg(long, value_name = "SCHEDULER", default_value = "none")]
    scheduler: String,
    /// What the machine runs on
    #[arg(long, value_name = "ENGINE", value_parser = EngineChoice::NAMES, default_value = "auto")]
    engine: String,
    /// Boot this kernel: auto, host, debian:SERIES, or a vmlinuz, vmlinux or build tree
    #[arg(long, value_name = "SPEC", default_value = "auto")]
    kernel: String,
    /// How to boot it: the unpacked ELF starts sooner, the bzImage has KASLR
    #[arg(long, value_name = "HOW", value_parser = BootPath::NAMES, default_value = "auto")]
    boot: String,
    /// Nodes, LLCs, cores per LLC and threads per core, as in 1n2l2c1t
    #[arg(long, value_name = "TOPOLOGY", value_parser = super::run::topology)]
    topology: Option<String>,
    /// The machine's memory, as in 512M or 2G
    #[arg(long, value_name = "SIZE", value_parser = crate::script::size)]
    memory: Option<u64>,
    /// Compile schedulers with this [default: the newest clang on the search path]
    #[arg(long, value_name = "PROGRAM")]
    clang: Option<PathBuf>,
}

/// The largest script that is read from standard input.
const MAX_INPUT: u64 = 4 << 20;
/// The exit code after a Ctrl-C.
const INTERRUPTED: u8 = 130;

pub(super) fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    super::engine::check(&args.engine)?;
    let opened = args.file.as_deref().map(Snapshot::open).transpose();
    let opened = opened.map_err(|e| Failure::usage(e.to_string()))?;
    let script = if config.interactive { None } else { Some(read_script()?) };
    let interrupts = Interrupts::watch(config.interactive)?;
    let voice = Voice::new(config.style, config.interactive);
    let subject = match opened {
        Some(snapshot) => Subject::Stored(snapshot),
        None => match boot::boot(args, config, &interrupts, &voice)? {
            Some(lab) => Subject::Machine(lab),
            None => return Ok(INTERRUPTED),
        },
    };
    let done = on_big_stack(|| {
        let (recorder, cancel) = (voice.recorder(), interrupts.cancel.clone());
        let (interactive, greeting) = match &subject {
            Subject::Machine(lab) => {
                (Interactive::new(lab.clone(), recorder, cancel), show::greeting(lab.facts()))
            }
            Subject::Stored(snapshot) => (
                Interactive::of_snapshot(snapshot.clone(), recorder, cancel),
                show::greeting_of(snapshot),
            ),
        };
        let mut repl = Repl::new(interactive, &interrupts, &voice, Box::new(|| subject.ended()));
        match &script {
            Some(script) => Ok(repl.run_script(script)),
            None => repl.converse(config.history.as_deref(), &greeting),
        }
    });
    if let Subject::Machine(lab) = &subject {
        lab.stop();
    }
    done.map_err(Failure::new)?
}

/// What the session is about.
enum Subject {
    Machine(Arc<Lab>),
    Stored(Arc<Snapshot>),
}

impl Subject {
    /// Why the machine has ended, once it has.
    fn ended(&self) -> Option<String> {
        match self {
            Subject::Machine(lab) => lab.ended(),
            Subject::Stored(_) => None,
        }
    }
}

fn read_script() -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = std::io::stdin().lock().take(MAX_INPUT + 1).read_to_end(&mut bytes);
    read.map_err(|e| Failure::new(format!("cannot read standard input: {e}")))?;
    if bytes.len() as u64 > MAX_INPUT {
        let mib = MAX_INPUT >> 20;
        return Err(Failure::usage(format!("standard input is larger than {mib} MiB")));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Failure::usage(format!("standard input is no script: byte {at} is not UTF-8"))
    })
}
