//! The machine of a session.

use std::sync::Arc;

use super::Args;
use super::interrupt::Interrupts;
use super::show::Voice;
use crate::cli::{Config, Failure};
use crate::kernel::{progress::Printed, resolve};
use crate::scenario::lab::LabError;
use crate::scenario::live::{BootFailed, Lab, Setup};
use crate::scenario::report::log_lines;
use crate::scenario::{BootPath, ExpectExit, ScenarioDecl, ScenarioOptions, SchedulerOptions};

/// How often a machine is booted before its engine is given up.
const ATTEMPTS: u32 = 2;
/// Lines of each log that are shown when a machine does not come up.
const LOG: usize = 20;

/// Boots what the command line asks for; `None` after a Ctrl-C.
pub(super) fn boot(
    args: &Args,
    config: &Config,
    interrupts: &Interrupts,
    voice: &Voice,
) -> Result<Option<Arc<Lab>>, Failure> {
    let decl = declared(args);
    let (cache, agent) = (config.cache()?, config.agent()?);
    let kernel =
        resolve(&args.kernel, cache, &Printed::to_stderr()).map_err(|error| {
            match error.is_bad_usage() {
                true => Failure::usage(format!("--kernel: {error}")),
                false => Failure::new(error.to_string()),
            }
        })?;
    let mut attempt = 1;
    loop {
        let setup = Setup {
            cache: cache.clone(),
            kernel: Some(kernel.clone()),
            agent: agent.clone(),
            tools: config.tools(args.clang.clone()),
            engine: args.engine.clone(),
            attempt,
            keep: None,
            events: voice.events(),
            recorder: voice.recorder(),
            cancel: interrupts.cancel.clone(),
        };
        let (booted, stopped) = interrupts.busy(|| Lab::boot(&decl, &setup));
        voice.settle();
        match booted {
            _ if stopped => return Ok(None),
            Ok(lab) => return Ok(Some(Arc::new(lab))),
            Err(BootFailed { fault: Some(fault), .. }) if attempt < ATTEMPTS => {
                voice.tell(&format!("the engine failed: {fault}; trying once more"));
            }
            Err(failed) => return Err(told(&failed, voice)),
        }
        attempt += 1;
    }
}

fn declared(args: &Args) -> ScenarioDecl {
    let usual = ScenarioOptions::default();
    let options = ScenarioOptions {
        scheduler: SchedulerOptions { src: args.scheduler.clone(), ..Default::default() },
        kernel: args.kernel.clone(),
        boot: BootPath::parse(&args.boot).unwrap_or_default(),
        topology: args.topology.clone().unwrap_or(usual.topology),
        memory: args.memory.unwrap_or(usual.memory),
        // A session goes on when the scheduler leaves, and says so.
        expect_exit: ExpectExit::Any,
        ..ScenarioOptions::default()
    };
    ScenarioDecl {
        name: "repl".into(),
        // What is relative starts where cryoscope was called.
        file: "repl".into(),
        index: 0,
        at: None,
        plain: true,
        boots: true,
        options,
    }
}

/// Why the machine did not come up, with the ends of its logs.
fn told(failed: &BootFailed, voice: &Voice) -> Failure {
    let mut text = failed.error.to_string();
    for line in log_lines(&failed.logs, &text, LOG, voice.style()) {
        text.push('\n');
        text.push_str(&line);
    }
    match failed.error {
        LabError::Argument(_) => Failure::usage(text),
        _ => Failure::new(text),
    }
}
