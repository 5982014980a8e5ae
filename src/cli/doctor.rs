//! `cryoscope doctor`: what this machine can do, and how to mend what is missing.
//!
//! [`Facts`] are gathered; [`judge`] makes findings of them and does nothing else.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, Failure, print};
use crate::kernel::progress::Silent;
use crate::kernel::{CacheDir, Kernels};
use crate::vm::contain::{Landlock, landlock, seccomp_offered};
use crate::vm::initramfs::Initramfs;
use crate::vm::{KvmSpeed, KvmTraps, QEMU, kvm_speed, kvm_traps, qemu_version};

/// Memory that a small machine and we ourselves need.
const MEMORY_NEEDED: u64 = 1 << 30;

/// What this machine is like.
#[derive(Clone, Debug)]
struct Facts {
    /// The version, or why there is none that will do, with the remedy.
    qemu: Result<String, String>,
    /// Version and program; the same.
    clang: Result<String, String>,
    /// Programs for fetching kernels that are not there.
    no_apt: Vec<&'static str>,
    keyring: bool,
    cache: Result<PathBuf, String>,
    agent: Result<PathBuf, String>,
    /// Specs of cached kernels, and whether each has sched_ext.
    kernels: Result<Vec<(String, bool)>, String>,
    /// How fast it is, or why there is none.
    kvm: Result<KvmSpeed, String>,
    /// Which of its traps fire.
    kvm_traps: KvmTraps,
    /// Whether threads can be filtered; why not.
    seccomp: Result<(), String>,
    landlock: Landlock,
    memory: Option<u64>,
    cores: usize,
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    /// As it should be.
    Good,
    /// Worth knowing.
    Note,
    /// Scenarios cannot run.
    Missing,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Finding {
    level: Level,
    what: &'static str,
    text: String,
    remedy: Option<String>,
}

impl Finding {
    fn good(what: &'static str, text: impl Into<String>) -> Self {
        Finding { level: Level::Good, what, text: text.into(), remedy: None }
    }

    fn note(what: &'static str, text: impl Into<String>) -> Self {
        Finding { level: Level::Note, what, text: text.into(), remedy: None }
    }

    fn missing(what: &'static str, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (text, remedy) = (text.into(), Some(remedy.into()));
        Finding { level: Level::Missing, what, text, remedy }
    }
}

pub(super) fn run(config: &Config) -> Result<u8, Failure> {
    let findings = judge(&gather(config));
    print(&report(&findings));
    Ok(u8::from(findings.iter().any(|f| f.level == Level::Missing)))
}

fn judge(facts: &Facts) -> Vec<Finding> {
    vec![
        told("qemu", &facts.qemu),
        told("clang", &facts.clang),
        agent(&facts.agent),
        cache(&facts.cache),
        kernels(facts),
        fetching(facts),
        memory(facts.memory),
        Finding::note("cores", cores(facts.cores)),
        Finding::note("kvm", kvm(&facts.kvm, facts.kvm_traps)),
        confined(&facts.seccomp, &facts.landlock),
    ]
}

/// What others say as "cause; remedy".
fn told(what: &'static str, found: &Result<String, String>) -> Finding {
    match found {
        Ok(text) => Finding::good(what, text),
        Err(why) => {
            let (text, remedy) = why.split_once("; ").unwrap_or((why, "see above"));
            Finding::missing(what, text, remedy)
        }
    }
}

fn agent(found: &Result<PathBuf, String>) -> Finding {
    match found {
        Ok(path) => Finding::good("agent", path.display().to_string()),
        Err(why) => Finding::missing(
            "agent",
            why,
            "build both programs: cargo build --release --bins (libelf is needed for that: \
             apt-get install libelf-dev)",
        ),
    }
}

fn cache(found: &Result<PathBuf, String>) -> Finding {
    match found {
        Ok(path) => Finding::good("cache", path.display().to_string()),
        Err(why) => {
            Finding::missing("cache", why, "set XDG_CACHE_HOME to a directory that can be written")
        }
    }
}

fn kernels(facts: &Facts) -> Finding {
    let specs = match &facts.kernels {
        Ok(specs) => specs,
        Err(why) => {
            let remedy = "delete the cache directory; what was in it is made anew";
            return Finding::missing("kernels", why, remedy);
        }
    };
    if specs.is_empty() {
        return Finding::note("kernels", "none cached yet; the first run fetches one");
    }
    let names: Vec<String> = specs
        .iter()
        .map(|(spec, ext)| if *ext { spec.clone() } else { format!("{spec} (no sched_ext)") })
        .collect();
    Finding::good("kernels", names.join(", "))
}

fn fetching(facts: &Facts) -> Finding {
    let has_one = facts.kernels.as_ref().is_ok_and(|k| k.iter().any(|(_, ext)| *ext));
    let (text, remedy) = match (&facts.no_apt[..], facts.keyring) {
        ([], true) => return Finding::good("fetching", "apt and Debian's keyring are there"),
        ([], false) => (
            "Debian's archive keyring is not there, so kernels cannot be verified".to_string(),
            "install it: apt-get install debian-archive-keyring",
        ),
        (missing, _) => (
            format!("not on the search path: {}; kernels come through apt", missing.join(", ")),
            "run on Debian, or give kernels as files: --kernel PATH",
        ),
    };
    if has_one {
        return Finding::note("fetching", format!("{text}; the cached kernels still work"));
    }
    Finding::missing("fetching", text, remedy)
}

fn memory(available: Option<u64>) -> Finding {
    let Some(available) = available else {
        return Finding::note("memory", "/proc/meminfo does not say how much is free");
    };
    let text = format!("{} MiB free", available >> 20);
    if available >= MEMORY_NEEDED {
        return Finding::good("memory", text);
    }
    let needed = MEMORY_NEEDED >> 20;
    let text = format!("{text}; a small machine needs {needed} MiB");
    Finding::missing("memory", text, "close what uses the memory, or run on a larger machine")
}

fn cores(cores: usize) -> String {
    match cores {
        1 => "1, so one machine at a time".into(),
        n => format!("{n}, so up to {n} machines at a time"),
    }
}

fn kvm(speed: &Result<KvmSpeed, String>, traps: KvmTraps) -> String {
    match speed {
        Ok(speed) if speed.is_real() => format!("{speed}; {traps}; --engine auto takes it"),
        Ok(speed) => {
            format!("{speed}; {traps}; machines are emulated by QEMU (TCG), which is faster")
        }
        Err(why) => format!("{why}; machines are emulated by QEMU (TCG)"),
    }
}

/// What stands around a guest that breaks out.
fn confined(seccomp: &Result<(), String>, landlock: &Landlock) -> Finding {
    let threads = match seccomp {
        Ok(()) => "seccomp filters the threads of machines".to_owned(),
        Err(why) => format!("threads of machines are not filtered, this host refuses ({why})"),
    };
    let processes = match landlock {
        Landlock::Offered(abi) => {
            let parts = match abi {
                0..4 => "their files",
                4..6 => "their files and TCP",
                _ => "their files, TCP and signals",
            };
            format!("landlock (version {abi}) confines scenarios and emulators: {parts}")
        }
        Landlock::Disabled => {
            "landlock is switched off in this host's kernel (boot with lsm=landlock,.. to have it)"
                .to_owned()
        }
        Landlock::Absent => "this host has no landlock to confine scenarios with".to_owned(),
    };
    let whole = seccomp.is_ok() && matches!(landlock, Landlock::Offered(_));
    let text = format!("{threads}; {processes}");
    if whole { Finding::good("walls", text) } else { Finding::note("walls", text) }
}

fn report(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Good => "ok",
            Level::Note => "-",
            Level::Missing => "MISSING",
        };
        out.push_str(&format!("{mark:>8}  {:<9} {}\n", finding.what, finding.text));
        if let Some(remedy) = &finding.remedy {
            out.push_str(&format!("{:>8}  {:<9} -> {remedy}\n", "", ""));
        }
    }
    let missing = findings.iter().filter(|f| f.level == Level::Missing).count();
    out.push_str(&match missing {
        0 => "\nScenarios can run here: cryoscope run scripts/smoke.rhai\n".to_string(),
        1 => "\nScenarios cannot run here until what is missing is mended.\n".to_string(),
        n => format!("\nScenarios cannot run here until the {n} missing things are mended.\n"),
    });
    out
}

fn gather(config: &Config) -> Facts {
    let cache = config.cache().map_err(|e| e.message).and_then(writable);
    let kernels = match config.cache() {
        Ok(dir) => Kernels::new(dir, &Silent)
            .cached()
            .map(|all| all.into_iter().map(|k| (k.spec, k.has_sched_ext)).collect())
            .map_err(|e| e.to_string()),
        Err(_) => Ok(Vec::new()),
    };
    let apt = ["apt-get", "apt-cache", "apt-config", "dpkg-deb"];
    Facts {
        qemu: qemu(),
        clang: clang(config),
        no_apt: apt.into_iter().filter(|program| !config.has_program(program)).collect(),
        keyring: has_keyring(),
        cache,
        agent: agent_with_libraries(config),
        kernels,
        kvm: kvm_speed(),
        kvm_traps: kvm_traps(),
        seccomp: seccomp_offered(),
        landlock: landlock(),
        memory: available_memory(),
        cores: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// The agent, if it can be put into a guest: with every library that it needs.
fn agent_with_libraries(config: &Config) -> Result<PathBuf, String> {
    let path = config.agent().map_err(|e| e.message)?;
    Initramfs::new().agent(&path).map_err(|e| e.to_string())?;
    Ok(path)
}

/// Whether entries could be put into the cache.
fn writable(cache: &CacheDir) -> Result<PathBuf, String> {
    let dir = cache.make_dir("locks").map_err(|e| e.to_string())?;
    rustix::fs::access(&dir, rustix::fs::Access::WRITE_OK)
        .map_err(|e| cache.error("write", dir, e.into()).to_string())?;
    Ok(cache.path().to_owned())
}

fn has_keyring() -> bool {
    let dirs = ["/usr/share/keyrings", "/etc/apt/trusted.gpg.d"];
    dirs.iter().any(|dir| {
        fs::read_dir(dir).is_ok_and(|mut entries| {
            entries.any(|e| {
                e.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("debian-archive-"))
            })
        })
    })
}

/// Bytes of memory that programs can still have, as the kernel estimates it.
pub(super) fn available_memory() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

fn qemu() -> Result<String, String> {
    let (major, minor, micro) = qemu_version(Path::new(QEMU)).map_err(|e| e.to_string())?;
    Ok(format!("{QEMU} {major}.{minor}.{micro}"))
}

fn clang(config: &Config) -> Result<String, String> {
    let found = config.tools(None).clang().map_err(|e| e.to_string())?;
    let found = found.ok_or_else(|| {
        "there is no clang on the search path, so no .bpf.c can be compiled; install one (on \
         Debian: apt-get install clang-19)"
            .to_string()
    })?;
    let version = found.version().map_err(|e| e.to_string())?;
    Ok(format!("{} {version}", found.path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::Breakpoints;
    use std::time::Duration;

    fn good() -> Facts {
        Facts {
            qemu: Ok("qemu-system-x86_64 7.2.22".into()),
            clang: Ok("/usr/bin/clang-19 19.1.7".into()),
            no_apt: vec![],
            keyring: true,
            cache: Ok("/home/me/.cache/cryoscope".into()),
            agent: Ok("/usr/bin/cryoscope-agent".into()),
            kernels: Ok(vec![("debian:7.2".into(), true)]),
            kvm: Ok(KvmSpeed { round: Duration::from_nanos(1) }),
            kvm_traps: KvmTraps { watchpoints: false, breakpoints: Breakpoints::Fire },
            seccomp: Ok(()),
            landlock: Landlock::Offered(6),
            memory: Some(4 << 30),
            cores: 2,
        }
    }

    fn missing(facts: &Facts) -> Vec<(&'static str, String)> {
        let missing = judge(facts).into_iter().filter(|f| f.level == Level::Missing);
        missing.map(|f| (f.what, f.remedy.expect("a remedy"))).collect()
    }

    #[test]
    fn a_good_machine_lacks_nothing() {
        assert_eq!(missing(&good()), []);
        let text = report(&judge(&good()));
        assert!(text.contains(" takes 1 ns a round; watchpoints do not fire, breakpoints fire; --engine auto takes it\n"), "{text}");
        assert!(text.contains("      ok  qemu      qemu-system-x86_64 7.2.22\n"), "{text}");
        assert!(text.ends_with("Scenarios can run here: cryoscope run scripts/smoke.rhai\n"));
    }

    #[test]
    fn walls_that_are_not_there_are_told_and_nothing_fails() {
        let walls = |seccomp: Result<(), String>, landlock| {
            let facts = Facts { seccomp, landlock, ..good() };
            assert_eq!(missing(&facts), []);
            report(&judge(&facts)).lines().find(|l| l.contains("  walls  ")).map(str::to_owned)
        };
        assert_eq!(
            walls(Ok(()), Landlock::Offered(6)).unwrap(),
            "      ok  walls     seccomp filters the threads of machines; landlock (version 6) \
             confines scenarios and emulators: their files, TCP and signals"
        );
        let text = walls(Ok(()), Landlock::Offered(3)).unwrap();
        assert!(text.ends_with("(version 3) confines scenarios and emulators: their files"));
        assert_eq!(
            walls(Err("EPERM".into()), Landlock::Absent).unwrap(),
            "       -  walls     threads of machines are not filtered, this host refuses (EPERM); \
             this host has no landlock to confine scenarios with"
        );
        let text = walls(Ok(()), Landlock::Disabled).unwrap();
        assert!(
            text.ends_with(
                "switched off in this host's kernel (boot with lsm=landlock,.. to \
                                have it)"
            ),
            "{text}"
        );
    }

    #[test]
    fn each_missing_thing_has_its_remedy() {
        type Change = fn(&mut Facts);
        let cases: [(Change, &str, &str); 7] = [
            (|f| f.qemu = Err("no QEMU; install it".into()), "qemu", "install it"),
            (|f| f.clang = Err("too old; install one".into()), "clang", "install one"),
            (|f| f.agent = Err("no agent".into()), "agent", "cargo build"),
            (|f| f.cache = Err("not writable".into()), "cache", "XDG_CACHE_HOME"),
            (|f| f.kernels = Err("unreadable".into()), "kernels", "delete the cache"),
            (
                |f| (f.kernels, f.keyring) = (Ok(vec![]), false),
                "fetching",
                "apt-get install debian-archive-keyring",
            ),
            (|f| f.memory = Some(100 << 20), "memory", "larger machine"),
        ];
        for (change, what, remedy) in cases {
            let mut facts = good();
            change(&mut facts);
            let missing = missing(&facts);
            assert_eq!(missing.len(), 1, "{what}: {missing:?}");
            assert_eq!(missing[0].0, what);
            assert!(missing[0].1.contains(remedy), "{missing:?}");
            assert!(report(&judge(&facts)).contains(" MISSING  "), "{what}");
        }
    }

    #[test]
    fn what_is_not_needed_now_is_a_note() {
        let mut facts = good();
        facts.no_apt = vec!["apt-get", "dpkg-deb"];
        facts.kvm = Err("there is no /dev/kvm".into());
        assert_eq!(missing(&facts), [], "a cached kernel does");
        let text = report(&judge(&facts));
        assert!(text.contains("there is no /dev/kvm; machines are emulated by QEMU (TCG)\n"));
        assert!(
            text.contains(
                "       -  fetching  not on the search path: apt-get, dpkg-deb; kernels come \
                 through apt; the cached kernels still work\n"
            ),
            "{text}"
        );
        facts.kernels = Ok(vec![("debian:6.12".into(), false)]);
        assert_eq!(missing(&facts).len(), 1, "that one has no sched_ext");
    }
}
