//! A cell from the outside: its process, its pipes, its end.
//!
//! ```text
//!            spawn                    told (stop, or its own deadline is long past)
//!  (nothing) ─────▶ (running) ───────────────────────────▶ (told to end: SIGTERM)
//!                    │   │                                    │            │
//!                    │   └──── exits ──▶ (ended) ◀── exits ───┘            │ GRACE is over
//!                    │                      ▲                              │ or stop is forced
//!                    └── damaged stream ──▶ (killed: SIGKILL) ◀────────────┘
//! ```
//!
//! The thread that calls [`attempt`] spawns the process and stays until it is reaped: the kernel
//! kills the cell when this thread (so, when this process) ends, and the cell's machine when the
//! cell ends. So nothing outlives a runner that is killed.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::cell::{CellSpec, GRACE};
use super::event::{CellFinished, Logs, RunEvent};
use super::text;
use super::verdict::{Outcome, Verdict};
use crate::child::command_dying_with_parent;
use crate::words::plain;

/// What a cell may take beyond its deadline before the runner steps in: it has its own watchdog,
/// this is for the case that the watchdog hangs too.
const OVERTIME: Duration = Duration::from_secs(20);
/// The longest line that a cell may send.
const MAX_LINE: usize = 16 << 20;
/// How much of a cell's standard error is kept.
const KEPT_STDERR: usize = 16 << 10;

/// The exit code of a process that found a bug in itself.
pub const INTERNAL: i32 = 70;

/// The wish that a run ends, and then the wish that it ends at once. Clones share it.
#[derive(Clone)]
pub struct Stop {
    asked: Arc<AtomicBool>,
    forced: Arc<AtomicBool>,
    /// Readable from the first wish on.
    soft: Arc<OwnedFd>,
    /// Readable from the second wish on.
    hard: Arc<OwnedFd>,
}

impl Stop {
    /// A wish that nobody has yet.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn new() -> io::Result<Self> {
        let bell = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Arc::new);
        Ok(Stop { asked: Arc::default(), forced: Arc::default(), soft: bell()?, hard: bell()? })
    }

    /// Asks everything to end; the second time, everything is killed.
    pub fn ask(&self) {
        let bell = if self.asked.swap(true, Ordering::SeqCst) {
            self.forced.store(true, Ordering::SeqCst);
            &self.hard
        } else {
            &self.soft
        };
        // An eventfd whose counter is full is readable already.
        let _ = rustix::io::write(bell, &1u64.to_ne_bytes());
    }

    /// Whether everything is to end.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.asked.load(Ordering::SeqCst)
    }
}

/// How to start a cell.
#[derive(Clone, Debug)]
pub struct Program {
    /// The executable.
    pub path: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// The cell's own last word, or the runner's about it.
    pub finished: CellFinished,
    /// Whether the cell ended by a bug of ours.
    pub internal: bool,
}

/// Runs one attempt of a cell to its end, handing on its events but the last.
pub fn attempt(
    program: &Program,
    spec: &CellSpec,
    stop: &Stop,
    on_event: &mut dyn FnMut(RunEvent),
) -> Ended {
    let started = Instant::now();
    let running = Running::spawn(program, spec)
        .map_err(|e| format!("cannot start a process for the scenario: {}", plain(&e)));
    let mut ended = match running.and_then(|running| running.finish(spec, stop, on_event)) {
        Ok(ended) => ended,
        Err(reason) => broken(spec.cell, reason),
    };
    ended.finished.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    ended
}

/// The end of a cell that could not tell it itself.
fn broken(cell: usize, reason: String) -> Ended {
    let finished = CellFinished {
        cell,
        verdict: Verdict::bare(Outcome::Error, reason),
        duration_ms: 0,
        fault: None,
        failed_before: 0,
        logs: Logs::default(),
    };
    Ended { finished, internal: false }
}

struct Running {
    child: Child,
    pidfd: OwnedFd,
    out: Lines<std::process::ChildStdout>,
    err: Tail<std::process::ChildStderr>,
    last: Option<CellFinished>,
    doing: String,
    /// Why the runner ended it, if it did.
    ended_for: Option<String>,
    /// When it is to be killed, once it has been told to end.
    kill_at: Option<Instant>,
}

impl Running {
    fn spawn(program: &Program, spec: &CellSpec) -> io::Result<Running> {
        let mut command = Command::new(&program.path);
        command.args(&program.args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own: a Ctrl-C at the terminal reaches the runner alone, which then ends
        // the cells in order.
        command.process_group(0);
        let mut child = command_dying_with_parent(command).spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a process without a number"))?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        let json = serde_json::to_vec(spec).map_err(io::Error::other)?;
        if let Some(mut stdin) = child.stdin.take() {
            // A cell that is gone already is noticed below.
            let _ = stdin.write_all(&json);
        }
        let (out, err) = match (child.stdout.take(), child.stderr.take()) {
            (Some(out), Some(err)) => (out, err),
            _ => return Err(io::Error::other("a process without its pipes")),
        };
        for fd in [out.as_fd(), err.as_fd()] {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?;
        }
        Ok(Running {
            child,
            pidfd,
            out: Lines { from: out, buf: Vec::new(), open: true },
            err: Tail { from: err, buf: Vec::new(), open: true },
            last: None,
            doing: "starting".into(),
            ended_for: None,
            kill_at: None,
        })
    }

    fn finish(
        mut self,
        spec: &CellSpec,
        stop: &Stop,
        on_event: &mut dyn FnMut(RunEvent),
    ) -> Result<Ended, String> {
        // A machine that stands still delays the cell's own deadline by as much again at most.
        let longest = spec.deadline.saturating_mul(2).saturating_add(OVERTIME);
        let deadline = Instant::now().checked_add(longest);
        loop {
            let gone = self.wait(deadline, stop).map_err(|e| {
                self.kill();
                format!("cannot wait for the scenario's process: {}", plain(&e))
            })?;
            self.listen(spec.cell, on_event);
            if gone {
                break;
            }
            self.step_in(deadline, stop, spec);
        }
        let status = self.child.wait().map_err(|e| plain(&e))?;
        Ok(self.judge(spec.cell, status))
    }

    /// Waits for output, the process's end (true), a wish to stop, or the next deadline.
    fn wait(&self, deadline: Option<Instant>, stop: &Stop) -> io::Result<bool> {
        let until = self.kill_at.or(deadline);
        let left = until.map(|at| {
            let left = at.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let mut fds = vec![PollFd::new(&self.pidfd, PollFlags::IN)];
        if self.out.open {
            fds.push(PollFd::new(&self.out.from, PollFlags::IN));
        }
        if self.err.open {
            fds.push(PollFd::new(&self.err.from, PollFlags::IN));
        }
        if !stop.forced.load(Ordering::SeqCst) {
            fds.push(PollFd::new(&*stop.hard, PollFlags::IN));
        }
        if self.kill_at.is_none() {
            fds.push(PollFd::new(&*stop.soft, PollFlags::IN));
        }
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => Ok(!fds[0].revents().is_empty()),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Takes what the cell has said.
    fn listen(&mut self, cell: usize, on_event: &mut dyn FnMut(RunEvent)) {
        self.err.read();
        let lines = match self.out.read() {
            Ok(lines) => lines,
            Err(why) => return self.damaged(&why),
        };
        for line in lines {
            match RunEvent::from_line(&line) {
                Ok(event) if event.cell() != Some(cell) || self.last.is_some() => {
                    return self.damaged("an event that is not its own, or after its last");
                }
                Ok(RunEvent::CellFinished(end)) => self.last = Some(end),
                Ok(RunEvent::CellStarted { .. } | RunEvent::CellRetried { .. }) => {
                    return self.damaged("an event that is the runner's to send");
                }
                Ok(event) => {
                    if let RunEvent::Stage { stage, .. } = &event {
                        self.doing = stage.doing().into();
                    }
                    on_event(event);
                }
                Err(why) => return self.damaged(&why),
            }
        }
    }

    fn damaged(&mut self, why: &str) {
        let reason = format!("the scenario's process sent something that cannot be trusted: {why}");
        self.ended_for.get_or_insert(reason);
        self.kill();
    }

    /// Tells the process to end, or kills it, when it is time.
    fn step_in(&mut self, deadline: Option<Instant>, stop: &Stop, spec: &CellSpec) {
        let now = Instant::now();
        if stop.forced.load(Ordering::SeqCst) || self.kill_at.is_some_and(|at| now >= at) {
            self.ended_for.get_or_insert_with(|| "interrupted".into());
            return self.kill();
        }
        if self.kill_at.is_some() {
            return;
        }
        let late = deadline.is_some_and(|at| now >= at);
        if !late && !stop.is_asked() {
            return;
        }
        let reason = if late {
            let limit = text::seconds(u64::try_from(spec.deadline.as_millis()).unwrap_or(u64::MAX));
            format!("took longer than {limit} and did not answer any more, while {}", self.doing)
        } else {
            "interrupted".to_string()
        };
        self.ended_for = Some(reason);
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            // The child is not reaped yet, so its number cannot be somebody else's.
            let _ = kill_process(pid, Signal::TERM);
        }
        self.kill_at = now.checked_add(GRACE * 2);
    }

    fn kill(&mut self) {
        let _ = self.child.kill();
        self.kill_at = Some(Instant::now() + Duration::from_secs(3600));
    }

    /// What the runner reports, once the process is gone.
    fn judge(mut self, cell: usize, status: ExitStatus) -> Ended {
        if let Some(finished) = self.last.take() {
            return Ended { finished, internal: false };
        }
        let reason = match self.ended_for.take() {
            Some(reason) => reason,
            None => format!("the scenario's process {} while {}", ending(status), self.doing),
        };
        let mut ended = broken(cell, reason);
        ended.internal = status.code() == Some(INTERNAL);
        let said = text::clean(&String::from_utf8_lossy(&self.err.buf));
        let said = text::tail(&said, 12, 4096).trim();
        if !said.is_empty()
            && let Some(reason) = &mut ended.finished.verdict.reason
        {
            reason.push_str("; it said:\n");
            reason.push_str(said);
        }
        ended
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Only after an error of our own is it still there.
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// How a process ended, completing "the process ..".
fn ending(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(libc::SIGKILL)) => "was killed (SIGKILL: out of memory, or by hand)".into(),
        (None, Some(libc::SIGSYS)) => {
            "was ended by its own filter of system calls (SIGSYS: a guest tried to break out, or \
             this program has a bug)"
                .into()
        }
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Whole lines from a non-blocking pipe.
struct Lines<R> {
    from: R,
    buf: Vec<u8>,
    open: bool,
}

impl<R: Read> Lines<R> {
    /// The lines that are complete by now.
    fn read(&mut self) -> Result<Vec<String>, String> {
        let mut chunk = [0; 1 << 16];
        let mut lines = Vec::new();
        while self.open {
            let n = match self.from.read(&mut chunk) {
                Ok(0) => {
                    self.open = false;
                    break;
                }
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(plain(&e)),
            };
            // Only the new bytes can hold a line break.
            let mut from = self.buf.len();
            self.buf.extend_from_slice(&chunk[..n]);
            let mut start = 0;
            while let Some(at) = memchr::memchr(b'\n', &self.buf[from..]) {
                let line = &self.buf[start..from + at];
                lines.push(String::from_utf8(line.to_vec()).map_err(|_| "not UTF-8".to_string())?);
                start = from + at + 1;
                from = start;
            }
            self.buf.drain(..start);
            if self.buf.len() > MAX_LINE {
                return Err(format!("a line of more than {MAX_LINE} bytes"));
            }
        }
        Ok(lines)
    }
}

/// The end of what comes out of a non-blocking pipe.
struct Tail<R> {
    from: R,
    buf: Vec<u8>,
    open: bool,
}

impl<R: Read> Tail<R> {
    fn read(&mut self) {
        let mut chunk = [0; 4096];
        while self.open {
            match self.from.read(&mut chunk) {
                Ok(n) if n > 0 => {
                    self.buf.extend_from_slice(&chunk[..n]);
                    let excess = self.buf.len().saturating_sub(KEPT_STDERR);
                    self.buf.drain(..excess);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                _ => self.open = false,
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::cell::{Overrides, SPEC_VERSION};
    use super::super::event::Stage;
    use super::super::verdict::Counts;
    use super::*;

    pub(in super::super) fn spec(cell: usize) -> CellSpec {
        CellSpec {
            version: SPEC_VERSION,
            cell,
            attempt: 1,
            file: "a.rhai".into(),
            index: cell,
            name: "x".into(),
            overrides: Overrides::default(),
            kernel: None,
            deadline: Duration::from_secs(60),
            keep: None,
            cache: "/nowhere".into(),
            writable: Vec::new(),
        }
    }

    pub(in super::super) fn shell(script: &str) -> Program {
        Program { path: "/bin/sh".into(), args: vec!["-c".into(), script.into()] }
    }

    pub(in super::super) fn end_line(cell: usize, outcome: Outcome, fault: Option<&str>) -> String {
        let counts = Counts { pass: 1, ..Counts::default() };
        let verdict = Verdict { outcome, reason: None, allowed: false, counts };
        let (fault, logs) = (fault.map(Into::into), Logs::default());
        let end = CellFinished { cell, verdict, duration_ms: 1, fault, failed_before: 0, logs };
        RunEvent::CellFinished(end).to_line().trim_end().to_string()
    }

    fn run(script: &str) -> (Ended, Vec<RunEvent>) {
        let mut seen = Vec::new();
        let stop = Stop::new().unwrap();
        let ended = attempt(&shell(script), &spec(0), &stop, &mut |e| seen.push(e));
        (ended, seen)
    }

    #[test]
    fn a_cells_events_come_through_and_its_last_word_counts() {
        let stage = RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: "x".into() };
        let script = format!(
            "cat >/dev/null; printf '%s' '{}'; sleep 0.05; echo; echo noise >&2; echo '{}'",
            stage.to_line().trim_end(),
            end_line(0, Outcome::Pass, None)
        );
        let (ended, seen) = run(&script);
        assert_eq!(seen, [stage]);
        assert_eq!(ended.finished.verdict.outcome, Outcome::Pass);
        assert!(!ended.internal && ended.finished.duration_ms >= 50);
    }

    #[test]
    fn a_cell_that_dies_is_an_error_that_says_how() {
        let stage = RunEvent::Stage { cell: 0, stage: Stage::Boot, detail: String::new() };
        let booting = format!("echo '{}'; ", stage.to_line().trim_end());
        let cases = [
            ("exit 3", "the scenario's process ended with exit code 3 while starting"),
            (
                "kill -KILL $$",
                "the scenario's process was killed (SIGKILL: out of memory, or by \
                               hand) while starting",
            ),
            ("kill -SEGV $$", "the scenario's process was ended by signal 11 while starting"),
            (
                "kill -SYS $$",
                "the scenario's process was ended by its own filter of system calls (SIGSYS: a \
                 guest tried to break out, or this program has a bug) while starting",
            ),
            (
                "echo oh >&2; exit 70",
                "the scenario's process ended with exit code 70 while \
                                      starting; it said:\noh",
            ),
            (
                "echo hello",
                "the scenario's process sent something that cannot be trusted: not an \
                            event: expected value at line 1 column 1",
            ),
        ];
        for (script, says) in cases {
            let (ended, _) = run(script);
            assert_eq!(ended.finished.verdict.outcome, Outcome::Error, "{script}");
            assert_eq!(ended.finished.verdict.reason.as_deref(), Some(says), "{script}");
            assert_eq!(ended.internal, script.contains("70"), "{script}");
        }
        let (ended, _) = run(&format!("{booting} exit 1"));
        let reason = ended.finished.verdict.reason.unwrap();
        assert!(reason.ends_with("exit code 1 while booting"), "{reason}");
    }

    #[test]
    fn what_is_not_a_cells_to_say_ends_it() {
        let foreign = RunEvent::Stage { cell: 7, stage: Stage::Boot, detail: String::new() };
        let starts = RunEvent::CellStarted { cell: 0, attempt: 1, at_ms: 0 };
        for event in [foreign, starts] {
            let script = format!("echo '{}'; exec sleep 60", event.to_line().trim_end());
            let (ended, seen) = run(&script);
            let reason = ended.finished.verdict.reason.unwrap();
            assert!(reason.contains("cannot be trusted"), "{reason}");
            assert!(seen.is_empty());
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_an_error() {
        let program = Program { path: "/nonexistent/cryoscope".into(), args: vec![] };
        let stop = Stop::new().unwrap();
        let ended = attempt(&program, &spec(0), &stop, &mut |_| {});
        assert_eq!(
            ended.finished.verdict.reason.as_deref(),
            Some("cannot start a process for the scenario: No such file or directory")
        );
    }

    #[test]
    fn a_stop_tells_the_cell_and_a_second_one_kills_it() {
        // Ends on SIGTERM with its last word, as a cell does.
        let polite = format!(
            "trap 'echo '\\''{}'\\''; exit 0' TERM; echo up >&2; while :; do sleep 0.05; done",
            end_line(0, Outcome::Error, None)
        );
        for (script, times, says) in
            [(polite.as_str(), 1, None), ("trap '' TERM; exec sleep 60", 2, Some("interrupted"))]
        {
            let stop = Stop::new().unwrap();
            let asker = stop.clone();
            let asking = std::thread::spawn(move || {
                for _ in 0..times {
                    std::thread::sleep(Duration::from_millis(300));
                    asker.ask();
                }
            });
            let started = Instant::now();
            let ended = attempt(&shell(script), &spec(0), &stop, &mut |_| {});
            asking.join().unwrap();
            assert_eq!(ended.finished.verdict.reason.as_deref(), says, "{script}");
            assert!(started.elapsed() < Duration::from_secs(30), "{script}");
        }
    }
}
