//! From what was seen when a machine ended to why it did. Pure.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::vm::ExitKind;

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Evidence<'a> {
    /// Whether we had sent the signal that ends QEMU.
    pub(super) stopping: bool,
    /// How the process ended.
    pub(super) status: Option<ExitStatus>,
    /// The reason that QEMU itself gave over QMP.
    pub(super) shutdown: Option<&'a str>,
    /// Whether QEMU logged a triple fault.
    pub(super) triple_fault: bool,
    /// The end of the console.
    pub(super) console: &'a str,
}

const PANIC: &str = "Kernel panic - not syncing: ";

/// Why the machine ended.
///
/// The guest ends it in one of two ways: by power-off, or by a reset, which may be a restart that
/// it wanted, what a panic ends in (`panic=-1`), or a triple fault. QEMU reports all resets alike,
/// so its log and the console decide.
pub(super) fn kind(seen: &Evidence<'_>) -> ExitKind {
    match seen.shutdown {
        Some("guest-shutdown") => ExitKind::PoweredOff,
        Some("guest-reset" | "guest-panic" | "subsystem-reset") => reset(seen),
        _ if seen.stopping => ExitKind::Stopped,
        Some(reason) => ExitKind::EngineDied { status: format!("ended itself ({reason})") },
        None => ExitKind::EngineDied { status: describe(seen.status) },
    }
}

/// What a reset meant.
pub(super) fn reset_kind(console: &str, triple_fault: bool) -> ExitKind {
    reset(&Evidence { triple_fault, console, ..Evidence::default() })
}

fn reset(seen: &Evidence<'_>) -> ExitKind {
    if let Some(evidence) = engine_fault(seen.console) {
        return ExitKind::EngineFault { evidence };
    }
    if let Some(message) = panic_message(seen.console) {
        return ExitKind::Panicked { message };
    }
    // A restart may end in a triple fault on purpose, after other means of resetting.
    if seen.triple_fault && !seen.console.contains("reboot: Restarting system") {
        return ExitKind::TripleFault;
    }
    ExitKind::Restarted
}

/// An Oops that correct hardware cannot give: the CPU ran into the breakpoint that stands in for
/// an instruction while it is being patched, although the breakpoint had been taken away or was
/// still being handled. QEMU's multi-threaded emulator lets one CPU run what it had translated
/// before another CPU's patching.
fn engine_fault(console: &str) -> Option<String> {
    console.lines().find(|line| line.contains("Oops: int3")).map(|line| bare(line).to_owned())
}

/// The kernel's words about the last panic, and the Oops before it where there was one.
fn panic_message(console: &str) -> Option<String> {
    let at = console.rfind(PANIC)?;
    let words = console[at + PANIC.len()..].lines().next().unwrap_or_default().trim();
    let oops = console[..at].lines().map(bare).find(|line| is_crash(line));
    Some(match oops {
        Some(oops) => format!("{words} ({oops})"),
        None => words.to_owned(),
    })
}

/// The lines of the console that explain the end: from the first sign of a crash on, or just the
/// last ones.
pub(super) fn excerpt(console: &str) -> String {
    const TAIL: usize = 30;
    const CRASH: usize = 80;
    let lines: Vec<&str> = console.trim_end().lines().collect();
    let crash = lines.iter().position(|line| is_crash(bare(line)) || line.contains(PANIC));
    let start = crash.unwrap_or(lines.len()).min(lines.len().saturating_sub(TAIL));
    let end = lines.len().min(start + CRASH);
    lines[start..end].join("\n")
}

fn is_crash(line: &str) -> bool {
    ["BUG: ", "Oops: ", "kernel BUG at "].iter().any(|start| line.starts_with(start))
}

/// A console line without the time stamp before it.
fn bare(line: &str) -> &str {
    let line = line.trim();
    match line.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((stamp, rest)) if stamp.trim().parse::<f64>().is_ok() => rest.trim_start(),
        _ => line,
    }
}

fn describe(status: Option<ExitStatus>) -> String {
    let Some(status) = status else { return "is gone without a trace".to_owned() };
    match (status.code(), status.signal()) {
        (Some(0), _) => "ended by itself".to_owned(),
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was killed by signal {signal}"),
        (None, None) => format!("ended: {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panicked(message: &str) -> ExitKind {
        ExitKind::Panicked { message: message.to_owned() }
    }

    fn died(status: &str) -> ExitKind {
        ExitKind::EngineDied { status: status.to_owned() }
    }

    #[test]
    fn endings_are_told_apart() {
        let init = "[    3.1] Kernel panic - not syncing: Attempted to kill init! \
                    exitcode=0x00000100\n[    3.1] CPU: 0 UID: 0 PID: 1\n";
        let oops = "[    9.52] BUG: kernel NULL pointer dereference, address: 0000000000000000\n\
                    [    9.53] Oops: 0002 [#1] SMP NOPTI\n\
                    [    9.60] Kernel panic - not syncing: Fatal exception\n";
        let int3 = "[    1.00] Oops: int3: 0000 [#1] SMP NOPTI\n\
                    [    1.01] Kernel panic - not syncing: Fatal exception in interrupt\n";
        let fault = "Oops: int3: 0000 [#1] SMP NOPTI".to_owned();
        let restart = "[    4.0] reboot: Restarting system\n";
        let cases = [
            (Some("guest-shutdown"), false, "", ExitKind::PoweredOff),
            (Some("guest-shutdown"), false, init, ExitKind::PoweredOff),
            (
                Some("guest-reset"),
                false,
                init,
                panicked("Attempted to kill init! exitcode=0x00000100"),
            ),
            (
                Some("guest-reset"),
                true,
                oops,
                panicked(
                    "Fatal exception (BUG: kernel NULL pointer dereference, address: \
                     0000000000000000)",
                ),
            ),
            (Some("guest-reset"), false, int3, ExitKind::EngineFault { evidence: fault }),
            (Some("guest-reset"), false, restart, ExitKind::Restarted),
            (Some("guest-reset"), true, restart, ExitKind::Restarted),
            (Some("guest-reset"), true, "[    0.1] booting\n", ExitKind::TripleFault),
            (Some("host-signal"), false, "", died("ended itself (host-signal)")),
        ];
        for (shutdown, triple_fault, console, expected) in cases {
            let seen = Evidence { shutdown, triple_fault, console, ..Evidence::default() };
            assert_eq!(kind(&seen), expected, "{seen:?}");
        }
    }

    #[test]
    fn the_excerpt_starts_where_the_crash_does() {
        let boot: Vec<String> = (0..100).map(|i| format!("[    0.{i:02}] boot {i}")).collect();
        let boot = boot.join("\n");
        let tail = excerpt(&boot);
        assert!(tail.starts_with("[    0.70] boot 70") && tail.ends_with("boot 99"), "{tail}");
        let trace = "[    1.2]  trace\n".repeat(200);
        let crash = excerpt(&format!("{boot}\n[    1.0] BUG: bad\n{trace}"));
        assert!(crash.starts_with("[    1.0] BUG: bad\n[    1.2]  trace"), "{crash}");
        assert_eq!(crash.lines().count(), 80);
        let short = excerpt(&format!("{boot}\n[    1.0] Kernel panic - not syncing: x\n"));
        assert!(short.starts_with("[    0.71] boot 71"), "some lines come before: {short}");
        assert_eq!(excerpt(""), "");
    }

    #[test]
    fn the_engines_own_death_says_how() {
        let cases = [
            (11, "was killed by signal 11"),
            (0, "ended by itself"),
            (1 << 8, "ended with exit code 1"),
        ];
        for (raw, words) in cases {
            let status = Some(ExitStatus::from_raw(raw));
            let seen = Evidence { status, ..Evidence::default() };
            assert_eq!(kind(&seen), died(words));
            assert!(kind(&seen).is_engine_fault());
        }
        assert_eq!(kind(&Evidence::default()), died("is gone without a trace"));
    }

    #[test]
    fn our_own_signal_is_no_death_but_what_came_before_it_counts() {
        let status = Some(ExitStatus::from_raw(9));
        let seen = Evidence { stopping: true, status, ..Evidence::default() };
        assert_eq!(kind(&seen), ExitKind::Stopped);
        let seen = Evidence { shutdown: Some("guest-shutdown"), ..seen };
        assert_eq!(kind(&seen), ExitKind::PoweredOff);
    }
}
