//! The few commands that a guest without any programs still has. They behave like the usual ones
//! without options.

use std::fs;
use std::io::{self, Write};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::process::signal_number;
use crate::sys::reason;
use crate::ticks;

/// Their names.
pub(crate) const NAMES: [&str; 10] =
    ["cat", "echo", "false", "insmod", "kill", "ls", "sleep", "sysctl", "ticks", "true"];

/// Runs one; its exit code.
pub(crate) fn main(argv: &[String]) -> i32 {
    let Some((name, args)) = argv.split_first() else { return 127 };
    if let Ok(comm) = std::ffi::CString::new(name.as_str()) {
        let _ = rustix::thread::set_name(&comm);
    }
    let done = match name.as_str() {
        "cat" => each(name, args, cat),
        "echo" => writeln!(io::stdout(), "{}", args.join(" ")).is_ok(),
        "false" => false,
        "insmod" => each(name, args, load),
        "kill" => kill(args),
        "ls" if args.is_empty() => each(name, &["/".to_owned()], list),
        "ls" => each(name, args, list),
        "sleep" => sleep(args),
        "sysctl" => each(name, args, sysctl),
        "ticks" => ticks::main(args),
        "true" => true,
        _ => return 127,
    };
    i32::from(!done)
}

/// Does `what` with each argument and goes on after failures.
fn each(name: &str, args: &[String], what: fn(&str) -> io::Result<()>) -> bool {
    let mut good = true;
    for arg in args {
        if let Err(error) = what(arg) {
            eprintln!("{name}: {arg}: {}", reason(&error));
            good = false;
        }
    }
    good
}

fn cat(path: &str) -> io::Result<()> {
    let mut file = fs::File::open(path)?;
    io::copy(&mut file, &mut io::stdout()).map(drop)
}

/// Shows a setting of the kernel's, or with `NAME=VALUE` changes it first.
fn sysctl(arg: &str) -> io::Result<()> {
    let (name, value) = arg.split_once('=').map_or((arg, None), |(n, v)| (n, Some(v)));
    let path = format!("/proc/sys/{}", name.trim().replace('.', "/"));
    if let Some(value) = value {
        fs::write(&path, value.trim())?;
    }
    writeln!(io::stdout(), "{name} = {}", fs::read_to_string(path)?.trim_end())
}

/// Loads a module that is not packed, without parameters.
fn load(path: &str) -> io::Result<()> {
    let file = fs::File::open(path)?;
    Ok(rustix::system::finit_module(&file, c"", 0)?)
}

fn list(path: &str) -> io::Result<()> {
    let mut names: Vec<String> = if fs::metadata(path)?.is_dir() {
        let entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.iter().map(|e| e.file_name().to_string_lossy().into_owned()).collect()
    } else {
        vec![path.to_owned()]
    };
    names.sort();
    names.iter().try_for_each(|name| writeln!(io::stdout(), "{name}"))
}

fn sleep(args: &[String]) -> bool {
    let seconds: Option<f64> = args.first().and_then(|a| a.trim_end_matches('s').parse().ok());
    match seconds.and_then(|s| Duration::try_from_secs_f64(s).ok()) {
        Some(time) => {
            std::thread::sleep(time);
            true
        }
        None => {
            eprintln!("sleep: how many seconds?");
            false
        }
    }
}

/// `kill [-SIGNAL] PID..`; a negative pid is a process group.
fn kill(args: &[String]) -> bool {
    let (signal, pids) = match args.split_first() {
        Some((first, rest)) if first.starts_with('-') => (signal_number(&first[1..]), rest),
        _ => (Some(libc::SIGTERM), args),
    };
    let Some(signal) = signal.and_then(Signal::from_named_raw) else {
        eprintln!("kill: no such signal: {}", args[0]);
        return false;
    };
    let mut good = !pids.is_empty();
    for text in pids {
        let number: i32 = text.parse().unwrap_or(0);
        let sent = match Pid::from_raw(number.abs()) {
            Some(pid) if number < 0 => kill_process_group(pid, signal),
            Some(pid) => kill_process(pid, signal),
            None => Err(rustix::io::Errno::SRCH),
        };
        if let Err(error) = sent {
            eprintln!("kill: {text}: {}", reason(&error.into()));
            good = false;
        }
    }
    good
}
