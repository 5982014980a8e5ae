//! Which QEMU a program is, if it is one.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::VmError;
use crate::child::command_dying_with_parent;
use crate::vm::console::printable;

/// A version as (major, minor, micro).
pub type Version = (u64, u64, u64);
/// The oldest QEMU that this is tested with (Debian 12's).
pub const OLDEST: Version = (7, 2, 0);

/// How long a program may take to say its version.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than any program says about its version.
const MOST: usize = 64 << 10;

/// Asks a program for its version.
///
/// # Errors
/// [`VmError::QemuAbsent`], [`VmError::QemuUnusable`] and [`VmError::QemuTooOld`].
pub fn version(program: &Path) -> Result<Version, VmError> {
    let unusable = |reason: String| VmError::QemuUnusable { program: program.to_owned(), reason };
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child =
        command_dying_with_parent(command).spawn().map_err(|e| spawn_error(program, &e))?;
    let said = read_until(child.stdout.take(), Instant::now() + PATIENCE);
    let _ = child.kill();
    let _ = child.wait();
    let said = said.map_err(|e| unusable(format!("it did not say its version: {e}")))?;
    let first = said.lines().next().unwrap_or_default();
    let found = parse(&said)
        .ok_or_else(|| unusable(format!("asked for its version, it said {first:?}")))?;
    if found < OLDEST { Err(too_old(program, found)) } else { Ok(found) }
}

/// Why a program could not be run.
pub(super) fn spawn_error(program: &Path, error: &io::Error) -> VmError {
    let program = program.to_owned();
    match error.kind() {
        io::ErrorKind::NotFound => VmError::QemuAbsent { program },
        _ => VmError::QemuUnusable { program, reason: error.to_string() },
    }
}

pub(super) fn too_old(program: &Path, found: Version) -> VmError {
    let text = |(major, minor, micro): Version| format!("{major}.{minor}.{micro}");
    VmError::QemuTooOld { program: program.to_owned(), found: text(found), needed: text(OLDEST) }
}

/// Why a program that ran did not become a machine: it may be no QEMU, or an old one that does not
/// know what it is asked; otherwise what it said.
pub(super) fn diagnose(program: &Path, said: &str) -> VmError {
    match version(program) {
        Err(e) => e,
        Ok(_) => VmError::Host { what: "start QEMU".to_owned(), reason: said.to_owned() },
    }
}

fn parse(said: &str) -> Option<Version> {
    let rest = &said[said.find("QEMU emulator version ")? + "QEMU emulator version ".len()..];
    let mut numbers = rest
        .split(|c: char| !c.is_ascii_digit() && c != '.')
        .next()?
        .split('.')
        .map(|n| n.parse::<u64>().ok());
    Some((numbers.next()??, numbers.next()??, numbers.next().flatten().unwrap_or(0)))
}

/// All that comes, up to a limit, until the end of it or the deadline.
fn read_until(
    source: Option<impl Read + std::os::fd::AsFd>,
    deadline: Instant,
) -> io::Result<String> {
    let mut source = source.ok_or(io::ErrorKind::BrokenPipe)?;
    let (mut all, mut buffer) = (Vec::new(), [0; 4096]);
    while all.len() < MOST {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout =
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        if poll(&mut [PollFd::new(&source, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match source.read(&mut buffer)? {
            0 => break,
            n => all.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(printable(&all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_qemu_says() {
        let cases = [
            ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright", Some((7, 2, 22))),
            ("QEMU emulator version 10.0", Some((10, 0, 0))),
            ("QEMU emulator version 9.1.50 (v9.1.0-1-g0)", Some((9, 1, 50))),
            ("QEMU emulator version x", None),
            ("QEMU emulator version 7.", None),
            ("bash 5.2", None),
        ];
        for (said, version) in cases {
            assert_eq!(parse(said), version, "{said}");
        }
    }

    /// The error for a program that is this shell script. Another process writes it: while we had
    /// it open for writing, a child of another test could inherit that, and it could not be run.
    fn error(script: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu");
        let mut writer = Command::new("/bin/sh");
        writer.args(["-c", "printf '#!/bin/sh\n%s\n' \"$1\" >\"$0\" && chmod 755 \"$0\""]);
        assert!(writer.arg(&program).arg(script).status().unwrap().success());
        let error = version(&program).unwrap_err().to_string();
        error.replace(&format!("{program:?}"), "PROGRAM")
    }

    #[test]
    fn what_is_no_good_qemu_says_what_to_do() {
        assert_eq!(
            error("echo QEMU emulator version 5.2.0"),
            "PROGRAM is QEMU 5.2.0, at least 7.2.0 is needed; upgrade it (on Debian 12 or later: \
             apt-get install qemu-system-x86)"
        );
        assert_eq!(
            error("echo hello"),
            "PROGRAM does not work as QEMU: asked for its version, it said \"hello\""
        );
        assert_eq!(
            error("exit 3"),
            "PROGRAM does not work as QEMU: asked for its version, it said \"\""
        );
        assert_eq!(
            version(Path::new("/nonexistent/qemu")).unwrap_err().to_string(),
            "QEMU is not there: \"/nonexistent/qemu\" was not found; install it (on Debian: \
             apt-get install qemu-system-x86)"
        );
        assert_eq!(
            version(Path::new("/etc/passwd")).unwrap_err().to_string(),
            "\"/etc/passwd\" does not work as QEMU: Permission denied (os error 13)"
        );
    }
}
