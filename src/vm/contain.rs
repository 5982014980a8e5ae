//! Walls around what a guest could take over: processes give up the right to change anything
//! outside of the directories they need.
//!
//! Landlock does it, where the kernel has it (Linux 5.13, and enabled): it needs no privileges, and
//! children inherit it. Each kernel enforces what its version knows; what it does not know it
//! leaves open, and one without it leaves all open. `doctor` says which it is.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

pub use super::kvm::seccomp_offered;

/// Special files that may be written: what is written there goes to nobody, or to a guest.
const DEVICES: [&str; 6] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/ptmx", "/dev/kvm"];

/// Where this process may write, once it has been confined.
static WRITABLE: OnceLock<Vec<PathBuf>> = OnceLock::new();

/// What the host offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Landlock {
    /// This version of its interface.
    Offered(u32),
    /// The kernel has it and was told not to use it.
    Disabled,
    /// The kernel has none, or something in between refuses it.
    Absent,
}

/// Asks the host's kernel. Nothing changes.
#[must_use]
pub fn landlock() -> Landlock {
    // Made and dropped: only entering a ruleset binds anybody. The attempt to enter none tells.
    let tried = std::thread::spawn(|| {
        let ruleset = Ruleset::default().handle_access(AccessFs::MakeBlock)?.create()?;
        Ok::<_, RulesetError>(ruleset.restrict_self()?.landlock)
    });
    match tried.join() {
        Ok(Ok(LandlockStatus::Available { effective_abi, kernel_abi })) => {
            let abi = kernel_abi.unwrap_or(effective_abi as i32);
            Landlock::Offered(abi.cast_unsigned())
        }
        Ok(Ok(LandlockStatus::NotEnabled)) => Landlock::Disabled,
        _ => Landlock::Absent,
    }
}

/// Takes from this thread, and from all that it starts, the right to change anything but what is
/// below these directories, to gain privileges, and to signal processes that are not its own. To be
/// called before there are other threads. Whether the host enforces it.
pub fn confine(writable: Vec<PathBuf>) -> bool {
    // By itself as well: landlock brings it along only where it is there.
    let _ = rustix::thread::set_no_new_privs(true);
    let all = writable.iter().map(PathBuf::as_path).chain(DEVICES.iter().map(Path::new));
    let enforced = enter(all, false).unwrap_or(false);
    if enforced {
        let _ = WRITABLE.set(writable);
    }
    enforced
}

/// The directories that this process was confined to, if it was.
#[must_use]
pub fn writable() -> Option<&'static [PathBuf]> {
    WRITABLE.get().map(Vec::as_slice)
}

/// Why a file could not be written, when that is because of [`confine`]: what to do, as an addition
/// to the message.
#[must_use]
pub fn explain(path: &Path, cause: &std::io::Error) -> Option<String> {
    let allowed = writable().filter(|_| cause.kind() == std::io::ErrorKind::PermissionDenied)?;
    let path = std::path::absolute(path).ok()?;
    if allowed.iter().any(|dir| path.starts_with(dir)) {
        return None;
    }
    Some(advice(allowed))
}

fn advice(allowed: &[PathBuf]) -> String {
    let mut names: Vec<String> = allowed.iter().map(|dir| dir.display().to_string()).collect();
    names.dedup();
    format!(
        "a scenario's process may only write below {}; save it there, or name its directory with \
         --writable",
        names.join(", ")
    )
}

/// For the thread that starts an emulator, which inherits it: nothing may be changed, nothing
/// connected to, nobody else signalled. Everything it needs it has as descriptors.
pub(super) fn emulator() {
    // Without landlock it runs as it always did.
    let _ = rustix::thread::set_no_new_privs(true);
    let _ = enter([Path::new("/dev/null")].into_iter(), true);
}

fn enter<'a>(writable: impl Iterator<Item = &'a Path>, alone: bool) -> Result<bool, RulesetError> {
    const KNOWN: ABI = ABI::V6;
    let writes = AccessFs::from_write(KNOWN);
    let mut ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    ruleset = ruleset.handle_access(writes)?.scope(Scope::Signal)?;
    if alone {
        ruleset = ruleset.handle_access(AccessNet::from_all(KNOWN))?;
        ruleset = ruleset.scope(Scope::AbstractUnixSocket)?;
    }
    let ruleset = ruleset.create()?.add_rules(path_beneath_rules(writable, writes))?;
    Ok(ruleset.restrict_self()?.ruleset != RulesetStatus::NotEnforced)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::ErrorKind;
    use std::net::TcpListener;
    use std::process::Command;

    fn refused<T>(result: std::io::Result<T>) -> bool {
        result.is_err_and(|e| e.kind() == ErrorKind::PermissionDenied)
    }

    #[test]
    fn an_emulators_thread_and_its_children_change_and_connect_to_nothing() {
        let Landlock::Offered(abi) = landlock() else {
            return println!("not shown, this host has no landlock: {:?}", landlock());
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, "before").unwrap();
        let inside = path.clone();
        let thread = std::thread::spawn(move || {
            emulator();
            assert!(rustix::thread::no_new_privs().unwrap());
            assert_eq!(fs::read_to_string(&inside).unwrap(), "before", "it may read");
            assert!(refused(fs::write(&inside, "after")));
            assert!(refused(fs::remove_file(&inside)));
            assert!(refused(fs::create_dir(inside.with_file_name("dir"))));
            fs::write("/dev/null", "gone").unwrap();
            assert!(abi < 4 || refused(TcpListener::bind("127.0.0.1:0")));
            let child = Command::new("sh").args(["-c", "echo x > \"$0\""]).arg(&inside).output();
            assert!(!child.unwrap().status.success(), "its child inherits it");
        });
        thread.join().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "before");
        fs::write(&path, "after").unwrap();
        TcpListener::bind("127.0.0.1:0").expect("other threads are as they were");
    }

    #[test]
    fn advice_names_the_directories() {
        let dirs = ["/work", "/work", "/tmp"].map(PathBuf::from);
        assert_eq!(
            advice(&dirs),
            "a scenario's process may only write below /work, /tmp; save it there, or name its \
             directory with --writable"
        );
        let cause = std::io::Error::from(ErrorKind::PermissionDenied);
        assert_eq!(explain(Path::new("/x"), &cause), None, "this process is not confined");
    }
}
