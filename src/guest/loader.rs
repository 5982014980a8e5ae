//! The process that loads a BPF object and holds it, so that libbpf, whose faults and memory are
//! its own, is not in PID 1. It prints what libbpf and the verifier say, tells the outcome on its
//! report pipe, and lets the scheduler go on SIGTERM.

use std::io::{self, Write};
use std::sync::Mutex;

use cryoscope::wire::{Patch, Refusal, RefusalKind};
use libbpf_rs::{
    ErrorKind, Link, MapCore, MapType, Object, ObjectBuilder, OpenObject, PrintLevel, ProgramType,
    set_print,
};

use crate::{refuse, subsched, sys};

/// What the loader tells the agent, as JSON, once.
pub(crate) type Report = Result<Vec<String>, Refusal>;

/// What libbpf has said; needed to tell what the verifier did not like.
static SAID: Mutex<String> = Mutex::new(String::new());
const SAID_KEPT: usize = 1 << 20;

fn print(_: PrintLevel, message: String) {
    let _ = io::stderr().write_all(message.as_bytes());
    if let Ok(mut said) = SAID.lock() {
        if said.len() + message.len() > SAID_KEPT {
            said.clear();
        }
        let from = message.len().saturating_sub(SAID_KEPT);
        let from = (from..).find(|at| message.is_char_boundary(*at)).unwrap_or(message.len());
        said.push_str(&message[from..]);
    }
}

/// The same for a person or a script: failures go to standard error.
pub(crate) fn hold(path: &str, options: &[String]) -> i32 {
    let _ = rustix::thread::set_name(c"hold");
    set_print(Some((PrintLevel::Info, print)));
    sys::block_termination();
    let held = hold_options(options).and_then(|(cgroup, background)| {
        let mut object = load(path, |object| match cgroup {
            Some(cgroup) => subsched::aim(path, object, cgroup)
                .map(|id| println!("cgroup {cgroup} has id {id}")),
            None => Ok(()),
        })?;
        let (links, names) = attach(path, &mut object)?;
        println!("attached {}", names.join(", "));
        if background {
            sys::to_background().map_err(|e| {
                let why = format!("cannot go to the background: {}", sys::reason(&e));
                refuse(RefusalKind::Kernel, why)
            })?;
        }
        Ok((links, object))
    });
    match held {
        Ok((links, object)) => {
            sys::wait_for_termination();
            drop(links);
            drop(object);
            0
        }
        Err(refusal) => {
            eprintln!("{refusal}");
            1
        }
    }
}

/// The cgroup that a scheduler is to be attached to, and whether a process of its own holds it.
fn hold_options(options: &[String]) -> Result<(Option<&str>, bool), Refusal> {
    let (mut cgroup, mut background) = (None, false);
    let mut rest = options.iter();
    while let Some(option) = rest.next() {
        match (option.as_str(), rest.as_slice().first()) {
            ("--background", _) => background = true,
            ("--cgroup", Some(path)) => {
                cgroup = Some(path.as_str());
                rest.next();
            }
            _ => {
                let message = format!(
                    "hold OBJECT [--cgroup PATH] [--background]: \"{option}\" is none of these"
                );
                return Err(refuse(RefusalKind::Invalid, message));
            }
        }
    }
    Ok((cgroup, background))
}

/// The whole life of a loader of the object at `path`.
pub(crate) fn main(path: &str, patches: &[Patch]) -> i32 {
    let report = sys::take_report();
    let _ = rustix::thread::set_name(c"loader");
    set_print(Some((PrintLevel::Info, print)));
    let patch = |object: &mut OpenObject| patches.iter().try_for_each(|p| apply(path, object, p));
    let loaded = load(path, patch).and_then(|mut object| {
        // From here on a signal must not end the process before it has let go.
        sys::block_termination();
        // Nor may the scheduler that it brings up decide whether it goes on: a bad one could keep
        // it from reporting, and later from letting go. Loading stays an ordinary process's work.
        let _ = sys::take_precedence();
        attach(path, &mut object).map(|(links, names)| (object, links, names))
    });
    let (told, held): (Report, _) = match loaded {
        Ok((object, links, names)) => (Ok(names), Some((object, links))),
        Err(refusal) => (Err(refusal), None),
    };
    let json = serde_json::to_vec(&told).unwrap_or_default();
    let mut pipe = std::fs::File::from(report);
    if pipe.write_all(&json).is_err() {
        return 1;
    }
    drop(pipe);
    let Some((object, links)) = held else { return 1 };
    sys::wait_for_termination();
    drop(links);
    drop(object);
    0
}

/// Loads what `prepare` has made of the object.
fn load(
    path: &str,
    prepare: impl FnOnce(&mut OpenObject) -> Result<(), Refusal>,
) -> Result<Object, Refusal> {
    let mut object = ObjectBuilder::default().open_file(path).map_err(|e| {
        let kind = match e.kind() {
            ErrorKind::NotFound => RefusalKind::NotFound,
            _ => RefusalKind::Invalid,
        };
        refuse(kind, format!("cannot open the BPF object {path}: {}{}", cause(&e), last_words()))
    })?;
    prepare(&mut object)?;
    object.load().map_err(|e| load_failure(path, &cause(&e), &said()))
}

fn apply(path: &str, object: &mut OpenObject, patch: &Patch) -> Result<(), Refusal> {
    let mut sections = Vec::new();
    for mut map in object.maps_mut() {
        let name = map.name().to_string_lossy().into_owned();
        let section = section_of(&name).map(String::from);
        let Some(value) = map.initial_value_mut() else { continue };
        if section.as_deref() != Some(&*patch.section) {
            sections.extend(section);
            continue;
        }
        let size = value.len();
        let place = (patch.offset as usize).checked_add(patch.bytes.len());
        let Some(target) = place.and_then(|end| value.get_mut(patch.offset as usize..end)) else {
            let message = format!(
                "cannot set {} bytes at {} of {} in {path}: the section has {size} bytes",
                patch.bytes.len(),
                patch.offset,
                patch.section
            );
            return Err(refuse(RefusalKind::Invalid, message));
        };
        target.copy_from_slice(&patch.bytes);
        return Ok(());
    }
    let message = format!(
        "no section {} with values in {path}; there are: {}",
        patch.section,
        sections.join(", ")
    );
    Err(refuse(RefusalKind::NotFound, message))
}

/// The section that a map of libbpf's stands for: `fifo.rodata` is `.rodata`, a section with a
/// name of its own (`.data.hot`) is a map of that name. Other maps stand for none.
fn section_of(map: &str) -> Option<&str> {
    let section = &map[map.find('.')?..];
    let kinds = [".rodata", ".data", ".bss", ".kconfig"];
    kinds.iter().any(|k| section.starts_with(k)).then_some(section)
}

/// Attaches the programs that attach by themselves, then every struct_ops map: the order of
/// libbpf's own skeletons.
fn attach(path: &str, object: &mut Object) -> Result<(Vec<Link>, Vec<String>), Refusal> {
    let (mut links, mut names) = (Vec::new(), Vec::new());
    for program in object.progs_mut() {
        if !program.autoload() || program.prog_type() == ProgramType::StructOps {
            continue;
        }
        match program.attach() {
            Ok(link) => links.push(link),
            // A kind that nothing attaches, such as those that are run by hand.
            Err(e) if e.kind() == ErrorKind::Unsupported => {}
            Err(e) => {
                let name = program.name().to_string_lossy().into_owned();
                let message = format!("cannot attach program \"{name}\" of {path}: {}", cause(&e));
                return Err(refuse(RefusalKind::Kernel, message));
            }
        }
    }
    for mut map in object.maps_mut() {
        if map.map_type() != MapType::StructOps || !map.autocreate() {
            continue;
        }
        let name = map.name().to_string_lossy().into_owned();
        match map.attach_struct_ops() {
            Ok(link) => links.push(link),
            Err(e) => {
                let message = format!(
                    "the kernel refused scheduler \"{name}\" of {path}: {}{}",
                    cause(&e),
                    attach_hint(errno(&e))
                );
                return Err(refuse(RefusalKind::Kernel, message));
            }
        }
        names.push(name);
    }
    if names.is_empty() {
        let message = format!("{path} holds no struct_ops map, so it is no scheduler");
        return Err(refuse(RefusalKind::Invalid, message));
    }
    Ok((links, names))
}

fn attach_hint(errno: Option<i32>) -> &'static str {
    match errno {
        Some(libc::EBUSY) => " (another scheduler is in charge)",
        Some(libc::EOPNOTSUPP) => " (the scheduler above lets none attach below it)",
        Some(libc::EINVAL) => {
            " (its flags or callbacks contradict each other; see the kernel's log)"
        }
        _ => "",
    }
}

/// What went wrong underneath all that libbpf-rs has wrapped around it.
pub(crate) fn cause(error: &libbpf_rs::Error) -> String {
    let text = innermost(error);
    match text.find(" (os error ") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

fn innermost(error: &libbpf_rs::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = inner.to_string();
        source = inner.source();
    }
    text
}

/// libbpf-rs hands out no number, but its text ends in it.
fn errno(error: &libbpf_rs::Error) -> Option<i32> {
    let text = innermost(error);
    text.rsplit_once(" (os error ")?.1.strip_suffix(')')?.parse().ok()
}

fn said() -> String {
    SAID.lock().map(|s| s.clone()).unwrap_or_default()
}

/// libbpf's last line, to follow an error that alone says little.
fn last_words() -> String {
    let said = said();
    let last = said.lines().rev().find(|l| !l.trim().is_empty());
    last.map(|l| format!(" ({})", l.trim())).unwrap_or_default()
}

/// Tells a program that the verifier rejected from everything else that keeps an object from
/// loading. libbpf frames the verifier's log with two lines that name the program.
fn load_failure(path: &str, cause: &str, said: &str) -> Refusal {
    const BEGIN: &str = "': -- BEGIN PROG LOAD LOG --";
    let Some(begin) = said.rfind(BEGIN) else {
        let last = said.lines().rev().find(|l| !l.trim().is_empty());
        let last = last.map(|l| format!(" ({})", l.trim())).unwrap_or_default();
        return refuse(RefusalKind::Kernel, format!("cannot load {path}: {cause}{last}"));
    };
    let program = said[..begin].rsplit_once("prog '").map_or("?", |(_, name)| name);
    let log = &said[begin + BEGIN.len()..];
    let log = log.split("-- END PROG LOAD LOG --").next().unwrap_or(log);
    // Newer kernels (7.3) explain the verdict at length below it.
    let log = log.split("\nVerification failed: ").next().unwrap_or(log);
    let bookkeeping =
        ["processed ", "verification time ", "stack depth ", "libbpf: ", "mark_precise: "];
    let verdict = log
        .lines()
        .rev()
        .map(str::trim)
        .find(|l| !l.is_empty() && !bookkeeping.iter().any(|b| l.starts_with(b)))
        .unwrap_or(cause);
    // Lines of source are noted in between, as in "; *count += 1; @ fifo.bpf.c:18".
    let mut noted = log.lines().rev().filter(|l| l.starts_with("; "));
    let line = noted.find_map(|l| l.rsplit_once(" @ ")).map(|(_, at)| at.trim());
    let at = line.map(|at| format!(" at {at}")).unwrap_or_default();
    refuse(
        RefusalKind::Verifier,
        format!("the verifier rejected program \"{program}\" of {path}{at}: {verdict}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_are_told_from_maps() {
        for (map, section) in [
            ("fifo.rodata", Some(".rodata")),
            (".data.hot", Some(".data.hot")),
            ("fifo.bss", Some(".bss")),
            (".rodata.cfg", Some(".rodata.cfg")),
            ("tasks", None),
            ("my.map", None),
        ] {
            assert_eq!(section_of(map), section, "{map}");
        }
    }

    #[test]
    fn options_of_hold_are_read() {
        let read = |words: &[&str]| {
            let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
            match hold_options(&words) {
                Ok((cgroup, background)) => Ok((cgroup.map(str::to_owned), background)),
                Err(refusal) => Err(refusal.message),
            }
        };
        let hot = || Some("/lab/hot".to_owned());
        assert_eq!(read(&[]), Ok((None, false)));
        assert_eq!(read(&["--cgroup", "/lab/hot"]), Ok((hot(), false)));
        assert_eq!(read(&["--background", "--cgroup", "/lab/hot"]), Ok((hot(), true)));
        let usage = "hold OBJECT [--cgroup PATH] [--background]:";
        for words in [&["--cgroup"][..], &["--background", "--cgroup"]] {
            assert_eq!(read(words), Err(format!("{usage} \"--cgroup\" is none of these")));
        }
        assert_eq!(read(&["/hot"]), Err(format!("{usage} \"/hot\" is none of these")));
    }

    #[test]
    fn the_verifier_is_quoted() {
        let said = "libbpf: prog 'fifo_enqueue': BPF program load failed: -EACCES\n\
            libbpf: prog 'fifo_enqueue': -- BEGIN PROG LOAD LOG --\n\
            0: R1=ctx() R10=fp0\n\
            ; one = *q; @ fifo.bpf.c:24\n\
            5: (79) r1 = *(u64 *)(r1 +0)\n\
            R1 invalid mem access 'scalar'\n\
            EXPLAINED\
            processed 6 insns (limit 1000000) max_states_per_insn 0\n\
            -- END PROG LOAD LOG --\n\
            libbpf: prog 'fifo_enqueue': failed to load: -EACCES\n";
        let at_length = "\nVerification failed: Register Type Safety\n\n\
            Reason:\n  R1 is a scalar.\n\nAt:\n  fifo_enqueue @ fifo.bpf.c:24:35\n\n\
            Suggestion:\n  Keep the pointer.\n\n";
        for explained in ["", at_length] {
            let said = said.replace("EXPLAINED", explained);
            let refusal = load_failure("/s.bpf.o", "Permission denied", &said);
            assert_eq!(refusal.kind, RefusalKind::Verifier);
            assert_eq!(
                refusal.message,
                "the verifier rejected program \"fifo_enqueue\" of /s.bpf.o at fifo.bpf.c:24: \
                 R1 invalid mem access 'scalar'"
            );
        }
    }

    #[test]
    fn other_failures_carry_the_last_words_of_libbpf() {
        let said = "libbpf: extern (ksym) 'gone': not found in kernel BTF\n";
        let refusal = load_failure("/s.bpf.o", "Invalid argument", said);
        assert_eq!(refusal.kind, RefusalKind::Kernel);
        assert_eq!(
            refusal.message,
            "cannot load /s.bpf.o: Invalid argument (libbpf: extern (ksym) 'gone': not found in \
             kernel BTF)"
        );
    }
}
