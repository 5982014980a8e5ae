//! Groups of the laboratory: cgroup v2 directories below [`LAB_CGROUP`], with the `cpu` and
//! `cpuset` controllers on (kernel: `Documentation/admin-guide/cgroup-v2.rst`).

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use cryoscope::wire::{CgroupSet, LAB_CGROUP, Refusal, RefusalKind};
use rustix::fs::{Mode, OFlags};

use crate::sys::reason;
use crate::text::{clean, parse_list};
use crate::{kmsg, refuse};

/// Where the hierarchy is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
const MAX_GROUPS: usize = 1024;
/// Files that tell how a group fares.
const STATISTICS: [&str; 9] = [
    "cgroup.events",
    "cgroup.stat",
    "cpu.max",
    "cpu.pressure",
    "cpu.stat",
    "cpu.weight",
    "cpuset.cpus",
    "cpuset.cpus.effective",
    "cpuset.mems.effective",
];

/// The groups there are, in the order in which they were made.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    names: Vec<String>,
    /// Why there can be none, when setting up the hierarchy failed.
    broken: Option<String>,
}

impl Groups {
    /// Makes the laboratory's root group and switches the controllers on.
    pub(crate) fn set_up() -> Self {
        let lab = Path::new(MOUNT).join(LAB_CGROUP);
        let steps = || -> io::Result<()> {
            fs::write(Path::new(MOUNT).join("cgroup.subtree_control"), "+cpu +cpuset")?;
            fs::create_dir_all(&lab)?;
            fs::write(lab.join("cgroup.subtree_control"), "+cpu +cpuset")
        };
        let broken = steps().err().map(|e| {
            format!("this kernel's cgroup v2 hierarchy lacks cpu or cpuset: {}", reason(&e))
        });
        if let Some(why) = &broken {
            kmsg::say(why);
        }
        Groups { names: Vec::new(), broken }
    }

    fn path(name: &str) -> PathBuf {
        Path::new(MOUNT).join(LAB_CGROUP).join(name)
    }

    /// The group's directory.
    pub(crate) fn find(&self, name: &str) -> Result<PathBuf, Refusal> {
        if self.names.iter().any(|n| n == name) {
            return Ok(Self::path(name));
        }
        let known = if self.names.is_empty() {
            "there are none".into()
        } else {
            format!("there are: {}", self.names.join(", "))
        };
        Err(refuse(RefusalKind::NotFound, format!("no cgroup \"{name}\"; {known}")))
    }

    pub(crate) fn create(&mut self, name: &str, set: &CgroupSet) -> Result<(), Refusal> {
        if let Some(why) = &self.broken {
            return Err(refuse(RefusalKind::Kernel, format!("cgroup \"{name}\": {why}")));
        }
        check_name(name)?;
        if self.names.iter().any(|n| n == name) {
            return Err(invalid(name, "it exists already"));
        }
        if self.names.len() >= MAX_GROUPS {
            return Err(invalid(name, &format!("there are {MAX_GROUPS} groups already")));
        }
        fs::create_dir(Self::path(name)).map_err(|e| kernel(name, "cannot be made", &e))?;
        self.names.push(name.to_owned());
        self.set(name, set).inspect_err(|_| {
            let _ = fs::remove_dir(Self::path(name));
            self.names.pop();
        })
    }

    pub(crate) fn set(&self, name: &str, set: &CgroupSet) -> Result<(), Refusal> {
        let dir = self.find(name)?;
        if let Some(cpus) = &set.cpus {
            write_set(name, &dir, "cpuset.cpus", cpus)?;
        }
        if let Some(mems) = &set.mems {
            write_set(name, &dir, "cpuset.mems", mems)?;
        }
        let weight = set.weight.map(|w| w.to_string());
        let others = [("cpu.weight", &weight), ("cpu.max", &set.cpu_max)];
        for (file, value) in others {
            let Some(value) = value else { continue };
            fs::write(dir.join(file), value)
                .map_err(|e| kernel(name, &format!("{file} cannot be set to \"{value}\""), &e))?;
        }
        Ok(())
    }

    pub(crate) fn procs(&self, name: &str) -> Result<Vec<u32>, Refusal> {
        let file = self.find(name)?.join("cgroup.procs");
        let text = fs::read_to_string(file).map_err(|e| kernel(name, "cannot be read", &e))?;
        Ok(text.lines().filter_map(|l| l.parse().ok()).collect())
    }

    pub(crate) fn statistics(&self, name: &str) -> Result<Vec<(String, String)>, Refusal> {
        let dir = self.find(name)?;
        let read = |file: &str| {
            let bytes = fs::read(dir.join(file)).ok()?;
            Some((file.to_owned(), clean(&bytes)))
        };
        Ok(STATISTICS.into_iter().filter_map(read).collect())
    }

    /// Moves every process; forks in between are caught by looking again.
    pub(crate) fn move_all(&self, from: &str, to: &str) -> Result<(), Refusal> {
        self.find(from)?;
        let target = self.find(to)?.join("cgroup.procs");
        if from == to {
            return Ok(());
        }
        for _ in 0..100 {
            let pids = self.procs(from)?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                match fs::write(&target, pid.to_string()) {
                    // It has ended meanwhile.
                    Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {}
                    done => done.map_err(|e| {
                        kernel(to, &format!("process {pid} cannot move in from \"{from}\""), &e)
                    })?,
                }
            }
        }
        Err(refuse(
            RefusalKind::Timeout,
            format!(
                "cgroup \"{from}\" was never empty: its processes fork as fast as they are moved"
            ),
        ))
    }

    /// Writes `cgroup.freeze` and opens `cgroup.events`, which signals POLLPRI at each change.
    pub(crate) fn freeze(&self, name: &str, frozen: bool) -> Result<File, Refusal> {
        let dir = self.find(name)?;
        let events = self.events(name)?;
        fs::write(dir.join("cgroup.freeze"), if frozen { "1" } else { "0" })
            .map_err(|e| kernel(name, "cannot be frozen or thawed", &e))?;
        Ok(events)
    }

    /// Whether every thread of the group sleeps, off its CPU: the kernel then names the function
    /// that it waits in (`/proc/PID/wchan`; kernels without the file are taken at their word).
    pub(crate) fn rests(&self, name: &str) -> bool {
        let Ok(dir) = self.find(name) else { return true };
        let threads = fs::read_to_string(dir.join("cgroup.threads")).unwrap_or_default();
        let place = |tid: &str| fs::read(format!("/proc/{tid}/wchan"));
        let awake = |tid: &str| place(tid).is_ok_and(|place| place == b"0");
        !threads.lines().any(awake)
    }

    /// Kills everything in the group and opens `cgroup.events`.
    pub(crate) fn kill(&self, name: &str) -> Result<File, Refusal> {
        let dir = self.find(name)?;
        let events = self.events(name)?;
        fs::write(dir.join("cgroup.kill"), "1")
            .map_err(|e| kernel(name, "cannot be killed", &e))?;
        Ok(events)
    }

    fn events(&self, name: &str) -> Result<File, Refusal> {
        let path = self.find(name)?.join("cgroup.events");
        File::open(path).map_err(|e| kernel(name, "cannot be watched", &e))
    }

    /// Removes the directory; `Ok(false)` while dying processes still hold it.
    pub(crate) fn try_remove(&mut self, name: &str) -> Result<bool, Refusal> {
        match fs::remove_dir(self.find(name)?) {
            Ok(()) => {
                self.names.retain(|n| n != name);
                Ok(true)
            }
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => Ok(false),
            Err(e) => Err(kernel(name, "cannot be removed", &e)),
        }
    }

    /// An open `cgroup.procs`, for a child to move itself in.
    pub(crate) fn entrance(&self, name: &str) -> Result<OwnedFd, Refusal> {
        let dir = self.find(name)?;
        if matches!(fs::read_to_string(dir.join("cgroup.freeze")), Ok(t) if t.trim() == "1") {
            return Err(invalid(name, "it is frozen, nothing can start in it; thaw it first"));
        }
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::open(dir.join("cgroup.procs"), flags, Mode::empty())
            .map_err(|e| kernel(name, "cannot be entered", &e.into()))
    }
}

/// Whether `cgroup.events` shows `key` as `value`.
pub(crate) fn event_is(events: &File, key: &str, value: &str) -> bool {
    let mut buffer = [0; 256];
    let n = rustix::io::pread(events, &mut buffer, 0).unwrap_or(0);
    let text = String::from_utf8_lossy(&buffer[..n]);
    text.lines().any(|l| l.split_once(' ') == Some((key, value)))
}

/// Writes a cpuset. The kernel silently leaves out members that the machine could have but does
/// not have online, so that is checked first.
fn write_set(name: &str, dir: &Path, file: &str, asked: &str) -> Result<(), Refusal> {
    let what = if file == "cpuset.cpus" { "CPUs" } else { "memory nodes" };
    let Some(wanted) = parse_list(asked) else {
        return Err(invalid(name, &format!("\"{asked}\" is no list of {what} (as in 0-3,8)")));
    };
    let all = Path::new(MOUNT).join(LAB_CGROUP).join(format!("{file}.effective"));
    let there = fs::read_to_string(all).unwrap_or_default();
    let given = parse_list(&there).unwrap_or_default();
    if wanted.iter().any(|w| !given.contains(w)) {
        return Err(invalid(
            name,
            &format!("{what} {asked} asked, the machine has {}", there.trim()),
        ));
    }
    // An empty write clears the set.
    let value = if wanted.is_empty() { "\n" } else { asked };
    fs::write(dir.join(file), value)
        .map_err(|e| kernel(name, &format!("{file} cannot be set to \"{asked}\""), &e))
}

fn check_name(name: &str) -> Result<(), Refusal> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@+".contains(c);
    let reserved = ["cgroup.", "cpu.", "cpuset.", "irq.", "memory.", "io.", "pids."];
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) || name.starts_with('.') {
        return Err(invalid(
            name,
            "a name has 1 to 64 letters, digits, or any of - _ . : @ +, and no leading dot",
        ));
    }
    if let Some(prefix) = reserved.iter().find(|p| name.starts_with(**p)) {
        return Err(invalid(name, &format!("names that start with \"{prefix}\" are the kernel's")));
    }
    Ok(())
}

fn invalid(name: &str, why: &str) -> Refusal {
    refuse(RefusalKind::Invalid, format!("cgroup \"{name}\": {why}"))
}

fn kernel(name: &str, what: &str, error: &io::Error) -> Refusal {
    refuse(RefusalKind::Kernel, format!("cgroup \"{name}\": {what}: {}", reason(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_group_can_have() {
        for (name, says) in [
            ("", "a name has 1 to 64 letters"),
            ("a/b", "a name has 1 to 64 letters"),
            ("..", "no leading dot"),
            ("cpu.stat", "names that start with \"cpu.\" are the kernel's"),
        ] {
            let error = check_name(name).unwrap_err();
            assert!(error.message.starts_with(&format!("cgroup \"{name}\": ")), "{error}");
            assert!(error.message.contains(says), "{error}");
        }
        check_name("hot-0").unwrap();
    }

    #[test]
    fn an_unknown_group_lists_the_known() {
        let groups = Groups { names: vec!["hot".into(), "cold".into()], broken: None };
        let error = groups.find("hto").unwrap_err();
        assert_eq!(error.message, "no cgroup \"hto\"; there are: hot, cold");
        assert_eq!(error.kind, RefusalKind::NotFound);
        let error = Groups::default().find("x").unwrap_err();
        assert_eq!(error.message, "no cgroup \"x\"; there are none");
    }
}
