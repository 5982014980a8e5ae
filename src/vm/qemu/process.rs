//! QEMU's process: how it is started, watched and ended.
//!
//! One thread per machine spawns QEMU and then does nothing but take what comes out of it, until
//! QEMU is gone and reaped. That the same thread spawns and stays matters: the kernel kills a
//! child with its parent-death signal when the *thread* that spawned it ends.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, FdFlags, fcntl_setfd, ioctl_fionbio};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{gdb, qmp};
use crate::child::command_dying_with_parent;
use crate::vm::console::printable;
use crate::vm::contain;
use crate::vm::ending::{self, Evidence};
use crate::vm::{Console, ExitInfo, ExitKind, ExitWatch};

/// How much of what QEMU prints is kept, and of the console looked at when it ends.
const KEEP: usize = 64 << 10;
/// Lines of QEMU's own output that go into an [`ExitInfo`].
const TAIL: usize = 30;
/// Helpings that the gdbstub may take at once; a stop reply is far smaller than one.
const MOST_READS: usize = 64;
/// How long a process may take to die of SIGKILL (it may be writing out a core).
const DEATH: Duration = Duration::from_secs(30);

/// What to run.
pub(super) struct Launch {
    pub(super) program: PathBuf,
    pub(super) args: Vec<OsString>,
    /// Descriptors that the child inherits under the same numbers; closed here once it has.
    pub(super) inherit: Vec<OwnedFd>,
}

/// Our ends of what comes out of QEMU, and where it goes.
pub(super) struct Outputs {
    pub(super) console_socket: OwnedFd,
    pub(super) console: Console,
    pub(super) qmp_socket: OwnedFd,
    pub(super) qmp: qmp::Feed,
    pub(super) gdb_socket: OwnedFd,
    pub(super) gdb: gdb::Feed,
    pub(super) log_pipe: OwnedFd,
}

/// A running QEMU. Dropping it kills and reaps it.
pub(super) struct Process {
    pidfd: OwnedFd,
    stopping: Arc<AtomicBool>,
    watch: ExitWatch,
    thread: Option<JoinHandle<()>>,
}

impl Process {
    /// Starts QEMU.
    ///
    /// # Errors
    /// The host's refusal to run the program.
    pub(super) fn spawn(launch: Launch, outputs: Outputs) -> io::Result<Self> {
        let (started, starting) = sync_channel(1);
        let stopping = Arc::new(AtomicBool::new(false));
        let watch = ExitWatch::default();
        let supervisor = Supervisor {
            outputs,
            watch: watch.clone(),
            stopping: stopping.clone(),
            engine_log: Vec::new(),
            triple_fault: false,
        };
        let thread = std::thread::Builder::new()
            .name("qemu".to_owned())
            .spawn(move || supervisor.run(launch, &started))?;
        match starting.recv() {
            Ok(Ok(pidfd)) => Ok(Process { pidfd, stopping, watch, thread: Some(thread) }),
            Ok(Err(e)) => {
                let _ = thread.join();
                Err(e)
            }
            Err(_) => Err(io::Error::other("the thread that watches QEMU failed")),
        }
    }

    pub(super) fn watch(&self) -> &ExitWatch {
        &self.watch
    }

    /// Kills QEMU if it still runs, and waits until nothing of it is left.
    pub(super) fn stop(&mut self) -> ExitInfo {
        self.stopping.store(true, Ordering::Release);
        // Fails only when it has ended already.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        let info = self.watch.wait(DEATH).unwrap_or_else(|| ExitInfo {
            kind: ExitKind::EngineDied { status: format!("has not died within {DEATH:?}") },
            console: String::new(),
            engine_log: String::new(),
        });
        if self.watch.get().is_some()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
        info
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The thread's own state.
struct Supervisor {
    outputs: Outputs,
    watch: ExitWatch,
    stopping: Arc<AtomicBool>,
    /// The end of what QEMU printed as its errors.
    engine_log: Vec<u8>,
    triple_fault: bool,
}

/// Whoever waits must learn of the end, also when this thread fails.
impl Drop for Supervisor {
    fn drop(&mut self) {
        self.outputs.console.close();
        self.outputs.qmp.close("QEMU ended");
        self.outputs.gdb.close("QEMU ended");
        self.watch.set(ExitInfo {
            kind: ending::kind(&Evidence::default()),
            console: ending::excerpt(&self.outputs.console.text()),
            engine_log: String::new(),
        });
    }
}

/// Where bytes came from.
#[derive(Clone, Copy)]
enum Source {
    Console,
    Gdb,
    Qmp,
    Log,
    Errors,
}

impl Supervisor {
    fn run(mut self, launch: Launch, started: &SyncSender<io::Result<OwnedFd>>) {
        // QEMU inherits it from this thread, which itself only reads what comes out.
        contain::emulator();
        let mut child = match spawn(launch) {
            Ok(child) => child,
            Err(e) => return drop(started.send(Err(e))),
        };
        let opened = Pid::from_child(&child);
        let pidfds = pidfd_open(opened, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|fd| Ok((fd.try_clone()?, fd)));
        match pidfds {
            Ok((theirs, ours)) => {
                // Nobody to tell means that nobody wants the machine.
                if started.send(Ok(theirs)).is_err() {
                    let _ = child.kill();
                }
                self.watch_over(&ours, &mut child);
            }
            Err(e) => {
                let _ = child.kill();
                let _ = child.wait();
                let _ = started.send(Err(e));
            }
        }
    }

    /// Takes what comes out until the child has ended and is reaped.
    fn watch_over(&mut self, pidfd: &OwnedFd, child: &mut Child) {
        let errors = child.stderr.take().map(OwnedFd::from);
        let clone = |fd: &OwnedFd| fd.try_clone().ok();
        let mut sources = vec![
            (Source::Console, clone(&self.outputs.console_socket)),
            (Source::Gdb, clone(&self.outputs.gdb_socket)),
            (Source::Qmp, clone(&self.outputs.qmp_socket)),
            (Source::Log, clone(&self.outputs.log_pipe)),
            (Source::Errors, errors),
        ];
        for (_, fd) in &sources {
            fd.as_ref().map(|fd| ioctl_fionbio(fd, true));
        }
        let mut buffer = vec![0; 64 << 10];
        let mut ended = false;
        while !ended {
            ended = wait(pidfd.as_fd(), &sources);
            for (source, slot) in &mut sources {
                // After the end all there is; before it one helping of each, so that none starves
                // the others.
                while let Some(fd) = slot {
                    match rustix::io::read(&*fd, &mut buffer) {
                        Ok(0) => *slot = None,
                        Ok(n) => self.take(*source, &buffer[..n]),
                        Err(Errno::INTR) => continue,
                        Err(Errno::AGAIN) => break,
                        Err(_) => *slot = None,
                    }
                    if !ended {
                        break;
                    }
                }
            }
        }
        self.conclude(child);
    }

    fn take(&mut self, source: Source, bytes: &[u8]) {
        match source {
            Source::Console => self.outputs.console.push(bytes),
            Source::Gdb => self.outputs.gdb.push(bytes),
            Source::Qmp => {
                // Who learns from an answer that the machine stands must know why, too.
                self.take_stops();
                self.outputs.qmp.push(bytes);
            }
            // The line is written whole and is far shorter than a pipe's buffer.
            Source::Log => {
                self.triple_fault |= memchr::memmem::find(bytes, b"Triple fault").is_some();
            }
            Source::Errors => {
                self.engine_log.extend_from_slice(bytes);
                let excess = self.engine_log.len().saturating_sub(KEEP);
                self.engine_log.drain(..excess);
            }
        }
    }

    /// Takes what the gdbstub has written so far.
    fn take_stops(&mut self) {
        let mut buffer = [0; 4096];
        for _ in 0..MOST_READS {
            match rustix::io::read(&self.outputs.gdb_socket, &mut buffer) {
                Ok(n @ 1..) => self.outputs.gdb.push(&buffer[..n]),
                Err(Errno::INTR) => {}
                _ => return,
            }
        }
    }

    fn conclude(&mut self, child: &mut Child) {
        let status = child.wait().ok();
        let shutdown = self.outputs.qmp.shutdown();
        let console = self.outputs.console.text();
        let kind = ending::kind(&Evidence {
            stopping: self.stopping.load(Ordering::Acquire),
            status,
            shutdown: shutdown.as_deref(),
            triple_fault: self.triple_fault,
            console: &console,
        });
        let log = printable(&self.engine_log);
        let lines: Vec<&str> = log.trim_end().lines().collect();
        self.watch.set(ExitInfo {
            kind,
            console: ending::excerpt(&console),
            engine_log: lines[lines.len().saturating_sub(TAIL)..].join("\n"),
        });
    }
}

/// Waits until something is there to be read; true once the child has ended.
fn wait(pidfd: BorrowedFd<'_>, sources: &[(Source, Option<OwnedFd>)]) -> bool {
    let mut fds = vec![PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    let open = sources.iter().filter_map(|(_, fd)| fd.as_ref());
    fds.extend(open.map(|fd| PollFd::new(fd, PollFlags::IN)));
    // An interruption reads what there is, which is nothing, and comes back.
    let _ = poll(&mut fds, None);
    !fds[0].revents().is_empty()
}

fn spawn(launch: Launch) -> io::Result<Child> {
    let mut command = Command::new(launch.program);
    command.args(launch.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    // A group of its own: a Ctrl-C at the terminal is for us, and not the machine's end.
    command.process_group(0);
    inherit(&mut command, launch.inherit);
    command_dying_with_parent(command).spawn()
}

/// Lets the child keep these descriptors, under the numbers they have here. They are closed on
/// our side with the command: only the child holds the other ends then, so that its end shows as
/// the end of every stream.
fn inherit(command: &mut Command, fds: Vec<OwnedFd>) {
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe
    // work is allowed. It makes one system call for each descriptor, on descriptors that it owns;
    // it takes no lock and allocates nothing (the error is a plain OS error number).
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            for fd in &fds {
                fcntl_setfd(fd, FdFlags::empty())?;
            }
            Ok(())
        });
    }
}
