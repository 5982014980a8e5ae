//! Telling what a spec names: a source, an object, a program.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{SchedulerError, SchedulerSpec, clang};
use crate::words::nearest;

/// What a spec turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Source,
    Object,
    Program,
    None,
}

/// First bytes of an ELF header, and where they say what machine it is for.
pub(super) const ELF_MAGIC: &[u8] = b"\x7fELF";
const ELF_HEADER: usize = 64;

impl Form {
    pub(super) fn of(src: &Path) -> Result<Form, SchedulerError> {
        let not = |found: &str| SchedulerError::NotAScheduler {
            path: src.to_owned(),
            found: found.to_owned(),
        };
        let meta = src.metadata().map_err(|cause| missing(src, cause))?;
        if meta.is_dir() {
            return Err(not("a directory"));
        }
        if !meta.is_file() {
            return Err(not("neither a file nor a link to one"));
        }
        let name = src.to_string_lossy();
        if name.ends_with(".bpf.c") {
            return Ok(Form::Source);
        }
        let mut head = Vec::new();
        let file = File::open(src).map_err(|e| SchedulerError::read(src, e))?;
        file.take(ELF_HEADER as u64)
            .read_to_end(&mut head)
            .map_err(|e| SchedulerError::read(src, e))?;
        if name.ends_with(".bpf.o") {
            return if head.starts_with(ELF_MAGIC) {
                Ok(Form::Object)
            } else {
                Err(not("no ELF file"))
            };
        }
        if name.ends_with(".c") {
            return Err(not("a C source whose name does not end with .bpf.c"));
        }
        if head.starts_with(b"#!") {
            return Err(not("a script; stage it and its interpreter, and name the interpreter"));
        }
        if !head.starts_with(ELF_MAGIC) || head.len() < ELF_HEADER {
            return Err(not("no ELF file"));
        }
        Form::of_elf(src, &head)
    }

    fn of_elf(src: &Path, head: &[u8]) -> Result<Form, SchedulerError> {
        use ::object::elf::{EM_BPF, EM_X86_64, ET_DYN, ET_EXEC};
        let (class, order) = (head[4], head[5]);
        let half = |at: usize| match order {
            2 => u16::from_be_bytes([head[at], head[at + 1]]),
            _ => u16::from_le_bytes([head[at], head[at + 1]]),
        };
        let (kind, machine) = (half(16), half(18));
        if (class, order, machine) == (2, 1, EM_BPF) {
            return Ok(Form::Object);
        }
        if (class, order, machine) != (2, 1, EM_X86_64) {
            let found = architecture(class, machine);
            let path = src.to_owned();
            return Err(SchedulerError::WrongArchitecture { path, found, wanted: "x86-64" });
        }
        if kind != ET_EXEC && kind != ET_DYN {
            let found = "an ELF file, but not a program".to_owned();
            return Err(SchedulerError::NotAScheduler { path: src.to_owned(), found });
        }
        if !clang::is_executable(src) {
            return Err(SchedulerError::NotExecutable { path: src.to_owned() });
        }
        Ok(Form::Program)
    }

    /// Refuses options that would be without effect.
    pub(super) fn check_options(self, spec: &SchedulerSpec) -> Result<(), SchedulerError> {
        let is = match self {
            Form::Source => "a C source",
            Form::Object => "a BPF object",
            Form::Program => "an executable",
            Form::None => "no scheduler at all",
        };
        let bpf = [Form::Source, Form::Object].contains(&self);
        for (option, given, allowed, for_what) in [
            ("rodata", !spec.rodata.is_empty(), bpf, "sources and objects"),
            ("include", !spec.include.is_empty(), self == Form::Source, "sources"),
            ("defines", !spec.defines.is_empty(), self == Form::Source, "sources"),
            ("args", !spec.args.is_empty(), self == Form::Program, "executables"),
            ("env", !spec.env.is_empty(), self == Form::Program, "executables"),
        ] {
            if given && !allowed {
                let src = PathBuf::from(&spec.src);
                return Err(SchedulerError::Option { option, for_what, src, is });
            }
        }
        Ok(())
    }
}

fn architecture(class: u8, machine: u16) -> String {
    use ::object::elf::{
        EM_386, EM_AARCH64, EM_ARM, EM_BPF, EM_PPC64, EM_RISCV, EM_S390, EM_X86_64,
    };
    let name = match machine {
        EM_X86_64 if class == 1 => return "x32".into(),
        EM_386 => "32-bit x86",
        EM_AARCH64 => "AArch64",
        EM_ARM => "32-bit ARM",
        EM_RISCV => "RISC-V",
        EM_S390 => "s390",
        EM_PPC64 => "64-bit PowerPC",
        EM_BPF => "big-endian BPF",
        other => return format!("another machine (ELF machine {other})"),
    };
    name.into()
}

fn missing(src: &Path, cause: std::io::Error) -> SchedulerError {
    if cause.kind() != std::io::ErrorKind::NotFound {
        return SchedulerError::read(src, cause);
    }
    let dir = src.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let names: Vec<String> = fs::read_dir(dir)
        .map(|entries| {
            let names = entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned());
            names.collect()
        })
        .unwrap_or_default();
    let asked = src.file_name().unwrap_or_default().to_string_lossy();
    let nearest = nearest(&asked, names.iter().map(String::as_str)).map(str::to_owned);
    SchedulerError::NotFound { path: src.to_owned(), nearest }
}
