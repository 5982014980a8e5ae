//! Programs that run to their end, with a time limit.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use cryoscope::wire::{Answer, Exec, Refusal, RefusalKind};
use rustix::event::PollFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::applets;
use crate::jobs::{Task, World};
use crate::process::{Ended, PATH, environment, read_some};
use crate::refuse;
use crate::sys::{self, Image, Role, Start, reason};
use crate::text::clean;

/// Of each stream, its beginning.
const KEPT: usize = 256 << 10;
/// No program runs longer, whatever was asked.
pub(crate) const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// How long output may still come after the end of the program and its group.
const AFTERMATH: Duration = Duration::from_millis(200);

/// A program that runs.
pub(crate) struct ExecTask {
    pid: Pid,
    /// When it is killed.
    limit: Instant,
    ended: Option<(Ended, Instant)>,
    timed_out: bool,
    report: Option<OwnedFd>,
    failure: Vec<u8>,
    streams: [Stream; 2],
}

#[derive(Default)]
struct Stream {
    /// Gone at its end.
    fd: Option<OwnedFd>,
    bytes: Vec<u8>,
    cut: bool,
}

impl Stream {
    fn read(&mut self) {
        let (bytes, cut) = (&mut self.bytes, &mut self.cut);
        let open = self.fd.as_ref().is_some_and(|fd| {
            read_some(fd, |new| {
                let room = KEPT - bytes.len();
                *cut |= new.len() > room;
                bytes.extend(&new[..new.len().min(room)]);
            })
        });
        if !open {
            self.fd = None;
        }
    }
}

/// The file to execute for a program's name, which is a path or is looked for.
pub(crate) fn find_program(name: &str) -> Option<String> {
    let runs = |path: &str| {
        fs::metadata(path).is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return runs(name).then(|| name.to_owned());
    }
    PATH.iter().map(|dir| format!("{dir}/{name}")).find(|path| runs(path))
}

/// Something to run.
pub(crate) enum Program {
    /// A file in the guest.
    File(Image),
    /// A command of the agent's own, with its arguments.
    Applet(Vec<String>),
}

impl Program {
    /// Starts it.
    pub(crate) fn spawn(&self, start: &Start<'_>) -> io::Result<Pid> {
        match self {
            Program::File(image) => sys::spawn(Role::Program(image), start),
            Program::Applet(argv) => sys::spawn(Role::Own(&|| applets::main(argv)), start),
        }
    }
}

/// A program in the guest, or an applet when there is none of that name.
pub(crate) fn program(argv: &[String], env: &[(String, String)]) -> Result<Program, Refusal> {
    let Some(name) = argv.first().filter(|n| !n.is_empty()) else {
        return Err(refuse(RefusalKind::Invalid, "no program named"));
    };
    let bad = |e: &dyn std::fmt::Display| {
        refuse(RefusalKind::Invalid, format!("cannot run \"{name}\": {e}"))
    };
    if let Some(path) = find_program(name) {
        let argv: Result<_, _> = argv.iter().map(|a| CString::new(a.as_str())).collect();
        return Ok(Program::File(Image {
            path: CString::new(path).map_err(|e| bad(&e))?,
            argv: argv.map_err(|e| bad(&e))?,
            envp: environment(env).map_err(|e| bad(&e))?,
        }));
    }
    if applets::NAMES.contains(&name.as_str()) {
        return Ok(Program::Applet(argv.to_vec()));
    }
    let why = if !name.contains('/') {
        format!("it is neither in {} nor built in", PATH.join(", "))
    } else if Path::new(name).exists() {
        "it is no executable file".into()
    } else {
        "there is no such file".into()
    };
    Err(refuse(
        RefusalKind::NotFound,
        format!(
            "cannot run \"{name}\" in the guest: {why}; built in are {}, other programs must be \
             staged",
            applets::NAMES.join(", ")
        ),
    ))
}

/// Starts a program.
pub(crate) fn start(argv: &[String], timeout: Duration, now: Instant) -> Result<ExecTask, Refusal> {
    let program = program(argv, &[])?;
    let limit = now + timeout.min(LONGEST);
    let steps = || -> io::Result<ExecTask> {
        let flags = PipeFlags::CLOEXEC;
        let ((out, out_end), (err, err_end)) = (pipe_with(flags)?, pipe_with(flags)?);
        let (report, report_end) = pipe_with(flags)?;
        for fd in [&out, &err, &report] {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        let null = File::open("/dev/null")?;
        let start = Start {
            stdio: [null.as_fd(), out_end.as_fd(), err_end.as_fd()],
            report: report_end.as_fd(),
            cgroup: None,
            go: None,
        };
        Ok(ExecTask {
            pid: program.spawn(&start)?,
            limit,
            ended: None,
            timed_out: false,
            report: Some(report),
            failure: Vec::new(),
            streams: [out, err].map(|fd| Stream { fd: Some(fd), ..Stream::default() }),
        })
    };
    steps().map_err(|e| {
        let message = format!("cannot run \"{}\": {}", argv[0], reason(&e));
        refuse(RefusalKind::Kernel, message)
    })
}

impl ExecTask {
    fn kill_group(&self) {
        let _ = kill_process_group(self.pid, Signal::KILL);
        if self.ended.is_none() {
            // It may not have come to lead a group yet.
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }

    fn outcome(&mut self) -> Exec {
        let ended = self.ended.map(|(how, _)| how);
        let [out, err] = &self.streams;
        Exec {
            code: ended.and_then(|e| if let Ended::Code(c) = e { Some(c) } else { None }),
            signal: ended.and_then(|e| if let Ended::Signal(s) = e { Some(s) } else { None }),
            timed_out: self.timed_out,
            stdout: clean(&out.bytes),
            stderr: clean(&err.bytes),
            truncated: out.cut || err.cut,
        }
    }
}

impl Task for ExecTask {
    fn fds<'a>(&'a self, out: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        let streams = self.streams.iter().filter_map(|s| s.fd.as_ref());
        out.extend(streams.chain(&self.report).map(|fd| (fd.as_fd(), PollFlags::IN)));
    }

    fn wake(&self, _: Instant) -> Option<Instant> {
        match self.ended {
            Some((_, at)) => Some(at + AFTERMATH),
            None => (!self.timed_out).then_some(self.limit),
        }
    }

    fn step(&mut self, world: &mut World) -> Option<Result<Answer, Refusal>> {
        self.streams.iter_mut().for_each(Stream::read);
        let failure = &mut self.failure;
        if self.report.as_ref().is_some_and(|fd| !read_some(fd, |b| failure.extend(b))) {
            self.report = None;
        }
        if let (None, Some(how)) = (self.ended, world.end_of(Pid::as_raw(Some(self.pid)) as u32)) {
            self.ended = Some((how, world.now));
            // Nothing of the group outlives its leader.
            self.kill_group();
        }
        if self.ended.is_none() && !self.timed_out && world.now >= self.limit {
            self.timed_out = true;
            self.kill_group();
        }
        let (_, at) = self.ended?;
        if !self.failure.is_empty() {
            let message = String::from_utf8_lossy(&self.failure).into_owned();
            return Some(Err(refuse(RefusalKind::Kernel, message)));
        }
        let finished = self.streams.iter().all(|s| s.fd.is_none());
        (finished || world.now >= at + AFTERMATH).then(|| Ok(Answer::Exec(self.outcome())))
    }

    fn timed_out(&mut self, _: &mut World) -> Refusal {
        let message =
            format!("process {} was killed but does not end", Pid::as_raw(Some(self.pid)));
        refuse(RefusalKind::Timeout, message)
    }

    fn patience(&self, now: Instant) -> Duration {
        self.limit.saturating_duration_since(now) + Duration::from_secs(10)
    }
}
