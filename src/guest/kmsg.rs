//! The kernel's log, from `/dev/kmsg` (`Documentation/ABI/testing/dev-kmsg`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::text::clean;

/// The most of the log that is kept in memory, its end.
const KEPT: usize = 512 << 10;

/// A place in the kernel's log, from which its lines can be read.
#[derive(Debug)]
pub(crate) struct Mark(OwnedFd);

impl Mark {
    fn open() -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(rustix::fs::open("/dev/kmsg", flags, Mode::empty())?)
    }

    /// The oldest line that the kernel still has.
    pub(crate) fn start() -> io::Result<Self> {
        Self::open().map(Mark)
    }

    /// After the newest line.
    pub(crate) fn end() -> io::Result<Self> {
        let fd = Self::open()?;
        rustix::fs::seek(&fd, SeekFrom::End(0))?;
        Ok(Mark(fd))
    }

    /// Every line since, as `dmesg` shows them. The mark moves behind them.
    pub(crate) fn read(&self) -> String {
        let (mut text, mut record) = (String::new(), [0; 8192]);
        loop {
            match rustix::io::read(&self.0, &mut record) {
                Ok(0) => break,
                Ok(n) => {
                    if let Some(line) = format_record(&record[..n]) {
                        text.push_str(&line);
                    }
                    if text.len() > 2 * KEPT {
                        cut(&mut text);
                    }
                }
                // Records were overwritten before they were read; reading goes on at the oldest.
                Err(Errno::PIPE) => text.push_str("[kernel messages were lost here]\n"),
                Err(Errno::INTR) => {}
                Err(_) => break,
            }
        }
        cut(&mut text);
        text
    }
}

/// Keeps the end of a log, whole lines.
fn cut(text: &mut String) {
    let Some(mut from) = text.len().checked_sub(KEPT) else { return };
    while !text.is_char_boundary(from) {
        from += 1;
    }
    let line = text[from..].find('\n').map_or(text.len(), |at| from + at + 1);
    text.drain(..line);
}

/// `6,339,5140900,-;message\n KEY=value\n` as `[    5.140900] message\n`.
fn format_record(record: &[u8]) -> Option<String> {
    let head = record.iter().position(|b| *b == b';')?;
    let micros = std::str::from_utf8(&record[..head]).ok()?.split(',').nth(2)?;
    let micros: u64 = micros.parse().ok()?;
    let message = record[head + 1..].split(|b| *b == b'\n').next().unwrap_or_default();
    let mut lines = String::new();
    for line in clean(&unescape(message)).split('\n') {
        lines += &format!("[{:5}.{:06}] {line}\n", micros / 1_000_000, micros % 1_000_000);
    }
    Some(lines)
}

/// What is not printable ASCII, and the backslash, the kernel writes as `\x0a`.
fn unescape(message: &[u8]) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (mut plain, mut rest) = (Vec::with_capacity(message.len()), message);
    while let Some((first, after)) = rest.split_first() {
        let coded = match *rest {
            [b'\\', b'x', high, low, ..] => digit(high).zip(digit(low)),
            _ => None,
        };
        rest = if coded.is_some() { &rest[4..] } else { after };
        plain.push(coded.map_or(*first, |(high, low)| (high * 16 + low) as u8));
    }
    plain
}

/// Leaves a line in the kernel's log, and so on the console. Unlike the console itself, the log
/// takes lines without ever making the writer wait; the kernel drops a flood of them.
pub(crate) fn say(message: &str) {
    // As an error, so that a quiet console shows it too.
    let line = format!("<3>cryoscope-agent: {message}");
    if let Ok(file) = File::options().write(true).open("/dev/kmsg") {
        let _ = io::Write::write_all(&mut &file, line.as_bytes());
    }
}

/// What the kernel's log says of the end of a scheduler.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedulerEnd {
    /// "runnable task stall: spin[31] failed to run for 30.0s", or empty when nothing is said.
    pub(crate) reason: String,
    /// Whether it left because its loader closed or was told to.
    pub(crate) unregistered: bool,
    /// The lines, from the first that names sched_ext.
    pub(crate) lines: String,
}

/// Finds the last end of a scheduler in log lines. The kernel writes `sched_ext: BPF scheduler
/// "NAME" disabled (REASON)`, after errors also `sched_ext: NAME: MESSAGE` and a backtrace
/// (kernel: `scx_root_disable`, before 7.1 `scx_disable_workfn`, in `kernel/sched/ext.c`).
pub(crate) fn scheduler_end(log: &str) -> SchedulerEnd {
    let bare = |line: &str| line.split_once("] ").map_or(line, |(_, m)| m).to_owned();
    let lines: Vec<&str> = log.lines().collect();
    let said = |line: &&str| bare(line).starts_with("sched_ext: ");
    let first = lines.iter().position(said).unwrap_or(lines.len());
    let mut end = SchedulerEnd { lines: lines[first..].join("\n"), ..SchedulerEnd::default() };
    let disabled = lines
        .iter()
        .rposition(|l| l.contains("sched_ext: BPF scheduler \"") && l.contains("\" disabled ("));
    let Some(at) = disabled else { return end };
    let line = bare(lines[at]);
    let Some((name, why)) = line
        .strip_prefix("sched_ext: BPF scheduler \"")
        .and_then(|rest| rest.rsplit_once("\" disabled ("))
    else {
        return end;
    };
    let why = why.strip_suffix(')').unwrap_or(why);
    end.unregistered = why.starts_with("unregistered from user space");
    end.reason = why.to_owned();
    let prefix = format!("sched_ext: {name}: ");
    let message =
        lines[at + 1..].iter().find_map(|l| bare(l).strip_prefix(&prefix).map(String::from));
    if let Some(message) = message {
        end.reason = format!("{why}: {message}");
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_become_lines() {
        let record = b"6,339,5140900,-;NET: Registered PF_INET6\n SUBSYSTEM=net\n";
        assert_eq!(format_record(record).unwrap(), "[    5.140900] NET: Registered PF_INET6\n");
        let two = format_record(b"6,340,7,-;one\\x0atwo\n").unwrap();
        assert_eq!(two, "[    0.000007] one\n[    0.000007] two\n");
        let coded = b"6,340,7,-;rcu: \\x09a \\x5c_SB_ \\xc3\\xa4; \\x1b[1m \\xff \\x4\n K=v\n";
        let plain = "[    0.000007] rcu: \ta \\_SB_ \u{e4}; \u{fffd}[1m \u{fffd} \\x4\n";
        assert_eq!(format_record(coded).unwrap(), plain);
        assert_eq!(format_record(b"6,1,x,-;m"), None);
        assert_eq!(format_record(b"no record"), None);
    }

    #[test]
    fn a_long_log_keeps_its_end() {
        let mut text = "ä line\n".repeat(200_000);
        cut(&mut text);
        assert!(text.len() <= KEPT && text.len() > KEPT - 10 && text.starts_with("ä"));
    }

    #[test]
    fn the_reason_of_an_end_is_found() {
        let log = "[    1.0] random\n\
            [    2.0] sched_ext: BPF scheduler \"fifo\" enabled\n\
            [    9.1] sched_ext: BPF scheduler \"fifo\" disabled (runnable task stall)\n\
            [    9.1] sched_ext: fifo: spin[31] failed to run for 4.1s\n\
            [    9.1]    scx_watchdog_workfn+0x1/0x2\n";
        let end = scheduler_end(log);
        assert_eq!(end.reason, "runnable task stall: spin[31] failed to run for 4.1s");
        assert!(!end.unregistered);
        assert!(end.lines.starts_with("[    2.0] sched_ext: BPF") && end.lines.ends_with("0x2"));
        let left = scheduler_end(
            "[1.0] sched_ext: BPF scheduler \"x\" disabled (unregistered from user space)",
        );
        assert!(left.unregistered);
        assert_eq!(scheduler_end("[1.0] nothing of it\n"), SchedulerEnd::default());
    }
}
