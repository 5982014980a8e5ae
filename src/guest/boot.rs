//! From the kernel's hand-over to the first frame, and what can wait until after it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use cryoscope::wire::{PORT_ARG, PORT_NAME, TTY_ARG};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};

use crate::kmsg;
use crate::sys;
use crate::uevent::Uevents;

/// How long the host's port may take to appear: its driver is probed before PID 1 starts, but
/// learns of its ports later.
const PORT_PATIENCE: Duration = Duration::from_secs(10);

/// What the transport needs: devices, their names, the kernel command line.
const FIRST: [(&str, &str); 3] = [("devtmpfs", "/dev"), ("sysfs", "/sys"), ("proc", "/proc")];
/// The rest. What a kernel lacks is left out.
const LATER: [(&str, &str); 7] = [
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
    ("tracefs", "/sys/kernel/tracing"),
    ("debugfs", "/sys/kernel/debug"),
    ("tmpfs", "/run"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/dev/shm"),
];

fn mount_all(list: &[(&str, &str)]) {
    for (kind, at) in list {
        let made = fs::create_dir_all(at);
        let flags = MountFlags::NOSUID | MountFlags::RELATIME;
        let done = made.and_then(|()| Ok(mount(*kind, *at, *kind, flags, None)?));
        if let Err(error) = done
            && error.raw_os_error() != Some(libc::EBUSY)
        {
            kmsg::say(&format!("no {kind} on {at}: {error}"));
        }
    }
}

/// Before the first frame: only what it takes to send one.
pub(crate) fn first_steps() {
    mount_all(&FIRST);
    // The scheduler under test must not be able to starve, or be disturbed by, who controls it.
    // Children start as ordinary processes.
    if let Err(error) = sys::take_precedence() {
        kmsg::say(&format!("stays an ordinary process: {error}"));
    }
}

/// After the first frame.
pub(crate) fn later_steps() {
    mount_all(&LATER);
    let limits =
        [(Resource::Nofile, Some(1 << 16)), (Resource::Memlock, None), (Resource::Core, Some(0))];
    for (resource, limit) in limits {
        let _ = setrlimit(resource, Rlimit { current: limit, maximum: limit });
    }
    let _ = rustix::system::sethostname(b"cryoscope");
    if let Err(error) = sys::loopback_up() {
        kmsg::say(&format!("no loopback: {error}"));
    }
    let _ = std::env::set_current_dir("/");
    // Programs look for each other's sockets there.
    if fs::create_dir_all("/var").is_ok() && !Path::new("/var/run").exists() {
        let _ = std::os::unix::fs::symlink("/run", "/var/run");
    }
}

/// The kernel command line's `name=value` words.
fn arguments(line: &str) -> BTreeMap<&str, &str> {
    line.split_whitespace().filter_map(|word| word.split_once('=')).collect()
}

/// Opens what the frames travel over: the virtio-serial port with the right name, or the serial
/// line that the kernel command line names.
pub(crate) fn open_transport(uevents: &mut Uevents) -> io::Result<OwnedFd> {
    let line = fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let arguments = arguments(&line);
    if let Some(tty) = arguments.get(TTY_ARG) {
        return open_tty(tty);
    }
    let name = arguments.get(PORT_ARG).copied().unwrap_or(PORT_NAME);
    let deadline = Instant::now() + PORT_PATIENCE;
    let mut seen = Vec::new();
    while Instant::now() < deadline {
        seen.clear();
        if let Some(device) = find_port(name, &mut seen) {
            let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
            match rustix::fs::open(Path::new("/dev").join(&device), flags, Mode::empty()) {
                Ok(fd) => return Ok(fd),
                // Its device node comes a moment after its name.
                Err(rustix::io::Errno::NOENT | rustix::io::Errno::NXIO) => {}
                Err(error) => {
                    return Err(io::Error::other(format!("cannot open /dev/{device}: {error}")));
                }
            }
        }
        wait_for_port(uevents);
    }
    Err(io::Error::other(format!(
        "no virtio-serial port named \"{name}\" after {} s (ports there: {seen:?}); give the \
         machine one, name another with {PORT_ARG}=, or a serial line with {TTY_ARG}=",
        PORT_PATIENCE.as_secs()
    )))
}

/// The device (`vport1p1`) whose port has this name.
fn find_port(name: &str, seen: &mut Vec<String>) -> Option<String> {
    for entry in fs::read_dir("/sys/class/virtio-ports").ok()?.flatten() {
        let text = fs::read_to_string(entry.path().join("name")).unwrap_or_default();
        if text.trim() == name {
            return entry.file_name().into_string().ok();
        }
        seen.push(text.trim().to_owned());
    }
    None
}

/// Waits until the kernel announces something about ports; looks again anyway after a moment,
/// since an announcement may have come before the socket was open.
fn wait_for_port(uevents: &mut Uevents) {
    let deadline = Instant::now() + Duration::from_millis(100);
    loop {
        uevents.read();
        let left = deadline.saturating_duration_since(Instant::now());
        if uevents.take_ports() || left.is_zero() {
            return;
        }
        let fd = uevents.fd();
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let _ = poll(&mut fds, Timespec::try_from(left).ok().as_ref());
    }
}

/// A serial line as a plain stream of bytes.
fn open_tty(name: &str) -> io::Result<OwnedFd> {
    let path = Path::new("/dev").join(name.trim_start_matches("/dev/"));
    let context = |e: io::Error| io::Error::other(format!("cannot use {}: {e}", path.display()));
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let fd = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| context(e.into()))?;
    let mut settings = tcgetattr(&fd).map_err(|e| context(e.into()))?;
    settings.make_raw();
    tcsetattr(&fd, OptionalActions::Flush, &settings).map_err(|e| context(e.into()))?;
    Ok(fd)
}

/// Ends the machine. What the disks and the console still owe is written first.
pub(crate) fn power_off() -> ! {
    rustix::fs::sync();
    let _ = rustix::termios::tcdrain(rustix::stdio::stderr());
    let error = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    kmsg::say(&format!("cannot power off: {error:?}"));
    // Returning would have the kernel panic, which also ends the machine, but says so.
    std::process::exit(1)
}

/// The standard streams, if the kernel could not give PID 1 any.
pub(crate) fn ensure_console() {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let null = fs::metadata("/dev/null").map(|m| std::os::unix::fs::MetadataExt::rdev(&m));
    let is_null = rustix::fs::fstat(rustix::stdio::stderr())
        .is_ok_and(|s| null.as_ref().is_ok_and(|n| *n == s.st_rdev));
    if is_null && let Ok(console) = rustix::fs::open("/dev/console", flags, Mode::empty()) {
        for duplicate in
            [rustix::stdio::dup2_stdin, rustix::stdio::dup2_stdout, rustix::stdio::dup2_stderr]
        {
            let _ = duplicate(&console);
        }
        if console.as_raw_fd() <= 2 {
            std::mem::forget(console);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_names_the_transport() {
        let words = arguments("quiet cryoscope.tty=ttyS1 console=ttyS0 a=b=c\n");
        assert_eq!(words.get(TTY_ARG), Some(&"ttyS1"));
        assert_eq!(words.get("a"), Some(&"b=c"));
        assert_eq!(words.get(PORT_ARG), None);
    }
}
