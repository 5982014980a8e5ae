//! Child processes that never outlive us.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Arranges that the child which `command` spawns is killed (SIGKILL) when its parent ends, however
/// the parent ends.
///
/// The kernel sends a parent-death signal when the *thread* that spawned the child ends, not when
/// its process does: spawn from a thread that lives as long as the child is meant to.
/// Grandchildren are not covered; programs whose helpers talk to them over pipes end with them.
///
/// The spawn fails with `ESRCH` if this process died before the child could ask for the signal.
/// A program that changes its credentials on exec (set-user-ID, file capabilities) loses it.
pub fn command_dying_with_parent(mut command: Command) -> Command {
    let parent = rustix::process::getpid();
    // SAFETY: the closure runs in the child between fork and exec, where only async-signal-safe
    // work is allowed. It makes two system calls, touches no lock, and allocates nothing: both
    // error values are plain OS error numbers.
    #[allow(unsafe_code)]
    unsafe {
        command.pre_exec(move || {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
            // The parent may have died before the signal was armed: then it never comes.
            if rustix::process::getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from_raw_os_error(libc::ESRCH))
            }
        });
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Stdio;

    #[test]
    fn a_child_runs_and_its_status_comes_back() {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exit 7"]);
        let status = command_dying_with_parent(command).status().expect("sh runs");
        assert_eq!(status.code(), Some(7));
    }

    #[test]
    fn a_child_is_killed_when_the_thread_that_spawned_it_ends() {
        let spawner = std::thread::spawn(|| {
            let mut command = Command::new("/bin/cat");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            command_dying_with_parent(command).spawn().expect("cat runs")
        });
        let mut child = spawner.join().expect("the spawner does not panic");
        // stdin stays open, so only the signal can end `cat`.
        let stdin = child.stdin.take();
        let mut out = Vec::new();
        child.stdout.take().expect("piped").read_to_end(&mut out).expect("the pipe closes");
        assert_eq!(child.wait().expect("it can be waited for").signal(), Some(libc::SIGKILL));
        drop(stdin);
    }
}
