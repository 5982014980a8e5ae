//! The guest agent: PID 1 of the machines that cryoscope boots.
//!
//! One program in several roles, told by its first argument: without one it is PID 1, which serves
//! the host's requests ([`agent`]); it starts itself again as a `worker`, as the `loader` that
//! holds a BPF scheduler, and as an `applet` for commands that the guest lacks. `/init hold
//! OBJECT` is a scheduler program like any other, for whoever wants to start one by hand; with
//! `--cgroup PATH` it attaches the scheduler to that cgroup, below another one, and with
//! `--background` it is done once the scheduler is attached, and a process of its own holds it.
//! PID 1 has one thread and never blocks; whatever may hang or crash runs in a process of its own.

mod agent;
mod applets;
mod attach;
mod boot;
mod cgroup;
mod exec;
mod jobs;
mod kmsg;
mod ledger;
mod loader;
mod maps;
mod menagerie;
mod process;
mod sched;
mod socket;
mod storage;
mod subsched;
mod sys;
mod text;
mod ticks;
mod transport;
mod uevent;
mod work;
mod worker;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use cryoscope::wire::{Refusal, RefusalKind};

/// What a panic said, for the host.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    if std::process::id() == 1 {
        // The kernel hands unknown words of its command line to PID 1 as arguments.
        init();
    }
    let args: Vec<String> = std::env::args_os().map(|a| a.to_string_lossy().into_owned()).collect();
    let code = match &args[..] {
        [_, role, path, options @ ..] if role == "hold" => loader::hold(path, options),
        _ => {
            eprintln!(
                "cryoscope-agent is PID 1 of the machines that cryoscope boots; it is not run by \
                 hand"
            );
            64
        }
    };
    ExitCode::from(code as u8)
}

/// PID 1: whatever happens, the host is told and the machine goes off.
fn init() -> ! {
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut said) = PANIC.lock() {
            *said = info.to_string().replace('\n', " ");
        }
        kmsg::say(&format!("fatal: {info}"));
    }));
    let mut agent = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let started = agent::Agent::start()?;
        agent.insert(started).run()
    }));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(error)) => Some(error.to_string()),
        Err(_) => Some(PANIC.lock().map(|said| said.clone()).unwrap_or_default()),
    };
    if let Some(reason) = failure {
        kmsg::say(&format!("cannot go on: {reason}"));
        let _ = catch_unwind(AssertUnwindSafe(|| agent.as_mut().map(|a| a.failed(reason))));
    }
    boot::power_off()
}

/// A refusal without a log.
fn refuse(kind: RefusalKind, message: impl Into<String>) -> Refusal {
    Refusal { kind, message: message.into(), log: String::new() }
}
