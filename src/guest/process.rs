//! Child processes: how they end, what they find around them, what they print.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::process::WaitStatus;

/// Where programs are looked for.
pub(crate) const PATH: [&str; 6] =
    ["/bin", "/usr/bin", "/sbin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With this exit code.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// `None` for a status that is no end (stopped, continued).
    pub(crate) fn from_status(status: WaitStatus) -> Option<Self> {
        let signal = status.terminating_signal().map(Ended::Signal);
        status.exit_status().map(Ended::Code).or(signal)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ended::Code(code) => write!(f, "exited with code {code}"),
            Ended::Signal(number) => match signal_name(number) {
                Some(name) => write!(f, "was killed by signal {number} ({name})"),
                None => write!(f, "was killed by signal {number}"),
            },
        }
    }
}

const SIGNALS: [(i32, &str); 15] = [
    (libc::SIGHUP, "SIGHUP"),
    (libc::SIGINT, "SIGINT"),
    (libc::SIGQUIT, "SIGQUIT"),
    (libc::SIGILL, "SIGILL"),
    (libc::SIGTRAP, "SIGTRAP"),
    (libc::SIGABRT, "SIGABRT"),
    (libc::SIGBUS, "SIGBUS"),
    (libc::SIGFPE, "SIGFPE"),
    (libc::SIGKILL, "SIGKILL"),
    (libc::SIGSEGV, "SIGSEGV"),
    (libc::SIGPIPE, "SIGPIPE"),
    (libc::SIGALRM, "SIGALRM"),
    (libc::SIGTERM, "SIGTERM"),
    (libc::SIGSTOP, "SIGSTOP"),
    (libc::SIGCONT, "SIGCONT"),
];

fn signal_name(number: i32) -> Option<&'static str> {
    SIGNALS.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

/// The number of `KILL`, `SIGKILL` or `9`.
pub(crate) fn signal_number(text: &str) -> Option<i32> {
    let named = |(_, name): &&(i32, &str)| *name == text || name[3..] == *text;
    let number = SIGNALS.iter().find(named).map(|(n, _)| *n);
    number.or_else(|| text.parse().ok().filter(|n| (1..=64).contains(n)))
}

/// What children find in their environment.
pub(crate) fn environment(extra: &[(String, String)]) -> io::Result<Vec<CString>> {
    let path = format!("PATH={}", PATH.join(":"));
    let base = [path.as_str(), "HOME=/", "TERM=dumb", "LANG=C.UTF-8", "TMPDIR=/tmp"];
    let fixed = base
        .iter()
        .filter(|b| !extra.iter().any(|(name, _)| b.split('=').next() == Some(name)))
        .map(|b| (*b).to_owned());
    let added = extra.iter().map(|(name, value)| format!("{name}={value}"));
    fixed.chain(added).map(|text| Ok(CString::new(text)?)).collect()
}

/// Reads what a non-blocking descriptor has now, at most one megabyte; false at its end.
pub(crate) fn read_some(fd: &OwnedFd, mut take: impl FnMut(&[u8])) -> bool {
    let mut buffer = [0; 16 << 10];
    for _ in 0..64 {
        match rustix::io::read(fd, &mut buffer) {
            Ok(0) => return false,
            Ok(n) => take(&buffer[..n]),
            Err(Errno::AGAIN) => return true,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(Ended::Code(3).to_string(), "exited with code 3");
        assert_eq!(Ended::Signal(9).to_string(), "was killed by signal 9 (SIGKILL)");
        assert_eq!(Ended::Signal(40).to_string(), "was killed by signal 40");
        assert_eq!(signal_number("TERM"), Some(15));
        assert_eq!(signal_number("SIGINT"), Some(2));
        assert_eq!((signal_number("65"), signal_number("x")), (None, None));
    }

    #[test]
    fn an_environment_can_be_overridden() {
        let all = environment(&[("HOME".into(), "/x".into()), ("A".into(), "b".into())]).unwrap();
        let all: Vec<&str> = all.iter().map(|v| v.to_str().unwrap()).collect();
        assert!(all.contains(&"HOME=/x") && all.contains(&"A=b") && !all.contains(&"HOME=/"));
        assert!(environment(&[("A".into(), "\0".into())]).is_err());
    }
}
